"""Bundles on the Hugging Face Hub, which is a small server here that keeps repositories in memory."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants

import taskgraft
from taskgraft import Bundle, Task
from taskgraft.bundle import write_bundle
from taskgraft.data import Preprocessing
from taskgraft.errors import TaskgraftError
from taskgraft.models.classifier import grow
from toys import NEW, OLD, parent

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_owner"
SQUARE = Preprocessing(32, "squash", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
Files = dict[str, bytes]


class Hub(BaseHTTPRequestHandler):
    """What the Hub answers to create, commit, look up and download; a write wants the token."""

    repos: dict[str, Files]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401 if "Authorization" not in self.headers else 403, {"error": "who are you?"})
        if self.path == "/api/repos/create":
            repo = "/".join(filter(None, (json.loads(body).get("organization"), json.loads(body)["name"])))
            self.repos.setdefault(repo, {})
            return self.reply(200, {"url": f"{constants.ENDPOINT}/{repo}", "name": repo})
        repo, _, rest = self.path.removeprefix("/api/models/").partition("/preupload/")
        if rest:
            modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            files = [{"path": f["path"], **modes} for f in json.loads(body)["files"]]
            return self.reply(200, {"files": files})
        repo, _, rest = self.path.removeprefix("/api/models/").partition("/commit/")
        if not rest:  # the metadata of the card is checked
            return self.reply(200, {"warnings": [], "errors": []})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.reply(200, {"commitUrl": f"{constants.ENDPOINT}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            repo = self.path.removeprefix("/api/models/").partition("/tree/")[0]
            files = self.repos[repo].items()
            return self.reply(200, [{"type": "file", "oid": COMMIT, "size": len(v), "path": n} for n, v in files])
        if self.path.startswith("/api/models/"):
            repo, _, revision = self.path.removeprefix("/api/models/").partition("?")[0].partition("/revision/")
            if repo not in self.repos:
                return self.reply(404, {}, error="RepoNotFound")
            if revision not in ("", "main", COMMIT):
                return self.reply(404, {}, error="RevisionNotFound")
            siblings = [{"rfilename": name} for name in self.repos[repo]]
            return self.reply(200, {"id": repo, "sha": COMMIT, "siblings": siblings})
        repo, _, rest = self.path.strip("/").partition("?")[0].partition("/resolve/")
        if repo not in self.repos:
            return self.reply(404, {}, error="RepoNotFound")
        revision, _, name = rest.partition("/")
        if revision not in ("main", COMMIT):
            return self.reply(404, {}, error="RevisionNotFound")
        if name not in self.repos[repo]:
            return self.reply(404, {}, error="EntryNotFound")
        return self.reply(200, self.repos[repo][name])

    def do_HEAD(self) -> None:
        self.do_GET()

    def reply(self, status: int, content: object, error: str = "") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(body) & (2**64 - 1):016x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Files]]:
    """The repositories of the Hub that this process talks to."""
    Hub.repos = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield Hub.repos
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    memory = {"ewc": {"importance": torch.ones(3)}}
    return Bundle(grow(parent(), NEW), SQUARE, memory, "/home/me/secret/paints", "0", "test_resnet", "fc")


def test_pushed_bundle_opens_from_its_name(hub: dict[str, Files], bundle: Bundle) -> None:
    assert bundle.push_to_hub("me/paints", token=TOKEN).endswith("/me/paints")
    assert set(hub["me/paints"]) == {"README.md", "config.json", "model.safetensors"}  # no memory unless asked for
    assert b"secret" not in hub["me/paints"]["config.json"]
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = bundle.classifier.eval()(images)
    for found in (taskgraft.from_pretrained("me/paints"), taskgraft.open_parent("hf-hub:me/paints")):
        assert found.source == "hf-hub:me/paints"
        assert found.tasks == (OLD, NEW)
        assert found.preprocessing == SQUARE
        with torch.inference_mode():
            logits = found.classifier.eval()(images)
        assert all(torch.equal(logits[name], expected[name]) for name in expected)
    with torch.inference_mode():  # plain timm reads it too
        joint = timm.create_model("hf-hub:me/paints", pretrained=True).eval()(images)
    torch.testing.assert_close(joint, torch.cat(list(expected.values()), 1))


def test_a_finished_run_is_pushed_without_its_history(hub: dict[str, Files], plain: Path) -> None:
    assert taskgraft.load(plain).push_to_hub("me/run", token=TOKEN).endswith("/me/run")
    assert set(hub["me/run"]) >= {"README.md", "config.json", "model.safetensors"}
    assert not set(hub["me/run"]) & {"record.json", "metrics.jsonl", "predictions.npz", "report.html"}


def test_card_says_what_it_reaches_and_how_it_is_loaded(plain: Path, tmp_path: Path) -> None:
    run = taskgraft.load(plain)
    run.save_pretrained(tmp_path / "shared")
    card = (tmp_path / "shared/README.md").read_text()
    shape = run.record.tasks[0]
    assert shape.child
    assert shape.forgetting
    assert f"| shape | 3 | {shape.parent.mean:.1%} (" in card  # type: ignore
    assert f"| {shape.forgetting.mean:.1%} (" in card
    assert f"taskgraft.from_pretrained('{tmp_path / 'shared'}')" in card
    assert "value: " + str(round(shape.child.mean, 6)) in card
    assert "license" not in card.partition("# shape")[0]
    assert "gives the logits of all tasks, 0 to 2 shape; 3 to 6 paint" in card
    found = taskgraft.from_pretrained(tmp_path / "shared")
    assert found.digest == run.bundle.digest
    assert found.cards == run.bundle.cards
    assert str(plain.parent) not in (tmp_path / "shared/config.json").read_text()
    with pytest.raises(TaskgraftError, match="holds a model already; choose another folder"):
        run.bundle.save_pretrained(plain)


def test_memory_is_written_where_it_is_asked_for(bundle: Bundle, tmp_path: Path, hub: dict[str, Files]) -> None:
    found = taskgraft.open_parent(bundle.save_pretrained(tmp_path / "a"))
    assert torch.equal(found.memory["ewc"]["importance"], torch.ones(3))
    bundle.save_pretrained(tmp_path / "b", memory=False)
    assert not (tmp_path / "b/memory.safetensors").exists()
    bundle.push_to_hub("me/paints", token=TOKEN, memory=True)
    assert taskgraft.from_pretrained("me/paints").memory.keys() == {"ewc"}


def test_timm_models_of_the_hub_open_as_before(hub: dict[str, Files], tmp_path: Path) -> None:
    net = timm.create_model("test_resnet", num_classes=3)
    timm.models.save_for_hf(net, str(tmp_path / "timm"), model_config={"label_names": list(OLD.classes)})
    hub["them/net"] = {path.name: path.read_bytes() for path in (tmp_path / "timm").iterdir()}
    (tmp_path / "names.txt").write_text("\n".join(OLD.classes))
    found = taskgraft.open_parent("hf-hub:them/net", labels=tmp_path / "names.txt")
    assert found.tasks == (Task("net", OLD.classes),)
    assert torch.equal(found.classifier.linears()[0].weight, net.state_dict()["fc.weight"])


def test_what_a_timm_model_of_the_hub_was_built_with_stays_in_its_bundle(hub: dict[str, Files], tmp_path: Path) -> None:
    net = timm.create_model("test_vit", num_classes=3, img_size=32, in_chans=1)
    options = {"img_size": 32, "in_chans": 1}
    timm.models.save_for_hf(
        net, str(tmp_path / "timm"), model_args=options, model_config={"label_names": list(OLD.classes)}
    )
    hub["them/gray"] = {path.name: path.read_bytes() for path in (tmp_path / "timm").iterdir()}
    found = taskgraft.open_parent("hf-hub:them/gray", preprocessing="32 squash")
    assert found.tasks == (Task("gray", OLD.classes),)
    again = taskgraft.open_parent(found.save_pretrained(tmp_path / "again"))
    assert again.preprocessing.to_text() == "32 squash bicubic mean=0.5 std=0.5"
    assert torch.equal(again.classifier.linears()[0].weight, net.state_dict()["head.weight"])


@pytest.mark.parametrize(
    ("repo", "options", "message"),
    [
        ("me/none", {}, "cannot download 'hf-hub:me/none': the Hub has no such repository, or it is private"),
        ("me/paints", {"revision": "v9"}, "cannot download 'hf-hub:me/paints@v9': the repository has no such revision"),
        ("a/b/c", {}, "'hf-hub:a/b/c' is not the name of a repository; write user/name"),
    ],
)
def test_what_cannot_be_opened_is_one_line(
    hub: dict[str, Files], repo: str, options: dict[str, str], message: str
) -> None:
    hub["me/paints"] = {"README.md": b"nothing"}
    with pytest.raises(TaskgraftError, match=message) as error:
        taskgraft.from_pretrained(repo, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("me/paints", None, "cannot upload to 'me/paints': there is no login to the Hub .*; log in by `hf auth login`"),
        ("me/paints", "hf_of_another", "the login may not write there"),
        ("me/paints/again", TOKEN, "'me/paints/again' is not the name of a repository; write user/name"),
    ],
)
def test_what_cannot_be_uploaded_is_one_line(
    hub: dict[str, Files], bundle: Bundle, repo: str, token: str | None, message: str
) -> None:
    with pytest.raises(TaskgraftError, match=message) as error:
        bundle.push_to_hub(repo, token=token)
    assert "\n" not in str(error.value)
    assert not hub


def test_no_network_is_one_line(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        TaskgraftError, match=r"cannot download 'hf-hub:me/x' \(.*without a network give a local folder"
    ):
        taskgraft.from_pretrained("me/x")
    with pytest.raises(TaskgraftError, match=r"cannot upload to 'me/x' \(.*; check the network"):
        bundle.push_to_hub("me/x", token=TOKEN)


def test_folder_has_no_revision(tmp_path: Path) -> None:
    write_bundle(tmp_path, Bundle(parent(), SQUARE, {}, "here", "0", "test_resnet", "fc"), method="", parent={})
    assert taskgraft.from_pretrained(tmp_path).tasks == (OLD,)
    with pytest.raises(TaskgraftError, match="is a folder, and revision='v1' is of a repository; leave one out"):
        taskgraft.from_pretrained(tmp_path, revision="v1")
