// The page at /: images go to /predict one by one, answers and their counts stay in this tab.
"use strict";

const AT_ONCE = 4; // requests under way; the server answers them in one batch
const TOP = 5;
const SEEN = 0.0005; // smaller probabilities would read 0.0 %
const SHOWN = 200; // images kept on the page; counts go on
const ROWS = 15; // classes of a task in its table
const Z = 1.959964; // 97.5 % point of the normal distribution

const get = (id) => document.getElementById(id);
const counts = new Map(); // task -> Map(label -> images)
const urls = [];
let answered = 0, failed = 0, asked = 0, under = 0, round = 0;
const waiting = [];

function make(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function headers(token) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

// ---- what the server serves

async function learn() {
  const token = sessionStorage.getItem("token");
  let found;
  try {
    const response = await fetch("/about", { headers: headers(token) });
    if (response.status === 401) return door(token);
    found = await response.json();
    if (!response.ok) throw new Error(found.error);
  } catch (error) {
    get("lead").textContent = `The server does not answer: ${error.message}`;
    return;
  }
  get("door").hidden = true;
  document.title = `${found.name} · taskgraft`;
  get("name").textContent = found.name;
  const tasks = found.tasks.map((task) => `${task.name} (${task.classes.length} classes)`);
  get("lead").textContent = `One ${found.architecture} that answers ${tasks.join(" and ")} in one pass.`;
  results(found);
  lineage(found);
  get("notes").replaceChildren(...found.notes.map((note) => make("li", note)));
  get("model").hidden = false;
}

// a late answer to an old token must not take away a new one
function door(refused) {
  if (sessionStorage.getItem("token") !== refused) return;
  sessionStorage.removeItem("token");
  get("lead").textContent = "Give the token that the server was started with.";
  get("door").hidden = false;
  get("token").focus();
}

const share = (interval) =>
  interval ? `${percent(interval.mean)} (${percent(interval.low)} to ${percent(interval.high)})` : "–";

function results(found) {
  const head = make("tr");
  for (const name of ["task", "classes", "before", "now", "forgetting"]) {
    head.append(Object.assign(make("th", name), { scope: "col" }));
  }
  const rows = found.tasks.map((task) => {
    const result = found.results.find((entry) => entry.task === task.name) || {};
    const row = make("tr");
    row.append(Object.assign(make("th", task.name), { scope: "row" }), make("td", task.classes.length));
    row.append(make("td", share(result.before)), make("td", share(result.now)));
    const lost = result.forgetting ? `${percent(result.forgetting.mean)}` : result.new ? "new" : "–";
    row.append(make("td", lost));
    return row;
  });
  const caption = make("caption", "Accuracy, with 95 % intervals");
  const [top, body] = [make("thead"), make("tbody")];
  top.append(head);
  body.append(...rows);
  get("results").replaceChildren(caption, top, body);
}

function lineage(found) {
  const steps = [];
  const first = found.lineage[0];
  if (first) steps.push(make("li", `${first.parent} (${first.architecture || "unknown"}): ${first.had.join(", ")}`));
  for (const step of found.lineage) {
    const scores = Object.entries(step.accuracy).map(([task, value]) => `${task} ${percent(value)}`);
    steps.push(make("li", `learnt ${step.learnt} by ${step.method}: ${scores.join(", ")}`));
  }
  if (!steps.length) steps.push(make("li", "It was trained as it is; nothing has been added to it yet."));
  get("lineage").replaceChildren(...steps);
}

// ---- asking

function add(files) {
  const images = [...files].filter((file) => file.size > 0);
  if (!images.length) return;
  asked += images.length;
  waiting.push(...images);
  get("answers").hidden = false;
  tell();
  next();
}

function next() {
  while (under < AT_ONCE && waiting.length) {
    under += 1;
    const turn = round;
    ask(waiting.shift(), turn).finally(() => {
      under -= 1;
      if (turn === round) tell();
      next();
    });
  }
}

async function ask(file, turn) {
  const [entry, place] = frame(file);
  const start = performance.now();
  try {
    const found = await post(file);
    if (turn !== round) return;
    const took = performance.now() - start;
    answered += 1;
    fill(place, found.images[0].tasks, found.seconds, took);
    count(found.images[0].tasks);
  } catch (error) {
    if (turn !== round) return;
    failed += 1;
    place.append(make("p", error.message, "error"));
  }
  entry.removeAttribute("aria-busy");
}

async function post(file) {
  for (;;) {
    const token = sessionStorage.getItem("token");
    const response = await fetch(`/predict?top=${TOP}`, {
      method: "POST",
      body: file,
      headers: { "Content-Type": "application/octet-stream", ...headers(token) },
    });
    if (response.status === 429) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((done) => setTimeout(done, 1000 * seconds));
      continue;
    }
    const found = await response.json();
    if (response.status === 401) door(token);
    if (!response.ok) throw new Error(found.error);
    return found;
  }
}

function frame(file) {
  const entry = make("li", undefined, "image");
  entry.setAttribute("aria-busy", "true");
  const image = make("img");
  image.alt = "";
  image.addEventListener("error", () => image.classList.add("broken"));
  image.src = URL.createObjectURL(file);
  urls.push(image.src);
  const place = make("article");
  const head = make("header");
  head.append(make("h3", file.name || "pasted image"));
  place.append(head);
  entry.append(image, place);
  get("images").prepend(entry);
  while (get("images").children.length > SHOWN) {
    const last = get("images").lastElementChild;
    URL.revokeObjectURL(last.querySelector("img").src);
    last.remove();
  }
  return [entry, place];
}

function fill(place, tasks, seconds, took) {
  place.querySelector("header").append(
    make("span", `${(1000 * seconds).toFixed(0)} ms on the server, ${took.toFixed(0)} ms in all`));
  const all = make("div", undefined, "tasks");
  for (const [name, task] of Object.entries(tasks)) {
    const block = make("section", undefined, "task");
    block.setAttribute("aria-label", name);
    block.append(make("h4", name), named("p", task.label ?? "none of this task", "answer"), bars(task.top));
    all.append(block);
  }
  place.append(all);
}

function bars(top) {
  const list = make("ul", undefined, "bars");
  for (const choice of top.filter((entry, place) => place === 0 || entry.probability >= SEEN)) {
    const row = make("li");
    row.style.setProperty("--share", choice.probability);
    row.append(named("span", choice.label), make("span", percent(choice.probability)));
    list.append(row);
  }
  return list;
}

// class names are often one long word of parts; they may break after an underscore
function named(tag, text, className) {
  const made = make(tag, undefined, className);
  text.split("_").forEach((part, place, parts) => {
    made.append(part + (place < parts.length - 1 ? "_" : ""));
    if (place < parts.length - 1) made.append(make("wbr"));
  });
  return made;
}

// ---- the distribution so far

function count(tasks) {
  for (const [name, task] of Object.entries(tasks)) {
    if (!counts.has(name)) counts.set(name, new Map());
    const label = task.label ?? "(none of this task)";
    counts.get(name).set(label, (counts.get(name).get(label) || 0) + 1);
  }
  get("shares").hidden = false;
  get("shares-note").textContent = `${plural(answered, "image")}, by what the model answered.`;
  get("tables").replaceChildren(...[...counts].map(([name, found]) => table(name, found)));
}

// Wilson's interval for a share: it stays within 0 and 1, also for few images
function wilson(hits, total) {
  const mean = hits / total, square = Z * Z / total;
  const center = (mean + square / 2) / (1 + square);
  const half = (Z / (1 + square)) * Math.sqrt((mean * (1 - mean)) / total + square / (4 * total));
  return [Math.max(0, center - half), Math.min(1, center + half)];
}

function table(name, found) {
  const made = make("table", undefined, "counts");
  const head = make("tr");
  for (const title of ["class", "images", "share", "95 % interval"]) {
    head.append(Object.assign(make("th", title), { scope: "col" }));
  }
  const body = make("tbody");
  const order = [...found].sort((one, two) => two[1] - one[1] || one[0].localeCompare(two[0]));
  for (const [label, hits] of order.slice(0, ROWS)) {
    const [low, high] = wilson(hits, answered);
    const row = make("tr");
    const cell = Object.assign(named("th", label), { scope: "row" });
    cell.style.setProperty("--share", hits / answered);
    row.append(cell, make("td", hits), make("td", percent(hits / answered, 0)));
    row.append(make("td", `${(100 * low).toFixed(0)} to ${percent(high, 0)}`, "interval"));
    body.append(row);
  }
  const top = make("thead");
  top.append(head);
  made.append(make("caption", name), top, body);
  if (order.length > ROWS) {
    const rest = order.slice(ROWS).reduce((sum, [, hits]) => sum + hits, 0);
    const row = make("tr");
    row.append(Object.assign(make("th", `${order.length - ROWS} more classes`), { scope: "row" }));
    row.append(make("td", rest), make("td", percent(rest / answered, 0)), make("td"));
    body.append(row);
  }
  return made;
}

function tell() {
  const parts = [`${answered} of ${plural(asked, "image")} answered`];
  if (failed) parts.push(`${failed} could not be used`);
  get("status").textContent = asked ? `${parts.join(", ")}.` : "";
}

function clear() {
  round += 1;
  waiting.length = 0;
  counts.clear();
  answered = failed = asked = 0;
  urls.splice(0).forEach((url) => URL.revokeObjectURL(url));
  get("images").replaceChildren();
  get("answers").hidden = get("shares").hidden = true;
  get("status").textContent = "Started again.";
  get("files").focus();
}

// ---- the ways in: choose, drop, paste

get("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
let depth = 0; // dragenter and dragleave also come from elements inside
const over = (change) => {
  depth = Math.max(0, depth + change);
  get("drop").classList.toggle("over", depth > 0);
};
addEventListener("dragenter", () => over(1));
addEventListener("dragleave", () => over(-1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  over(-depth);
  add(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
});
get("clear").addEventListener("click", clear);
get("door").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", get("token").value);
  get("token").value = "";
  learn();
});
learn();
