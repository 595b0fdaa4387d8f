"""Deliberate defects, each of which its tests must notice: `make mutants`. Not collected by pytest.

Every mutation is applied alone to a copy of src/, which the tests then import in place of the package. A mutant that
survives, and a text that is no longer found, are failures of this script.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FILES = {
    "laws": "tests/laws/test_laws.py",
    "losses": "tests/test_losses.py",
    "chains": "tests/laws/test_chains.py",
    "defects": "tests/reference/test_defects.py",
    "training": "tests/reference/test_defects_of_training.py",
    "methods": "tests/reference/test_methods.py",
    "recall": "tests/models/test_tensor_cache.py",
    "precision": "tests/training/test_precision.py",
    "structure": "tests/reference/test_methods_of_structure.py",
    "state": "tests/training/test_checkpoints.py",
    "parallel": "tests/distributed/test_equal.py",
    "pieces": "tests/training/test_micro_batching.py",
    "costs": "tests/laws/test_costs.py",
    "compiled": "tests/training/test_compilation.py",
    "matching": "tests/bundle/test_matching.py",
}


class Mutant(NamedTuple):
    """One defect: where, which text becomes which, and the tests (file key, start of names) that must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


LAWS = [
    Mutant("distill has a strength of its own", "methods/distill.py", "self.strength * torch.stack",
           "(self.strength + 1e-3) * torch.stack", "laws test_strength_0_equals_finetune"),
    Mutant("the proximal step is left out", "training/loop.py",
           "penalties.step_towards(params, on_weights.values(), lr, keep,",
           "penalties.step_towards(params, (), lr, keep,", "laws test_positive_strength_differs_from_finetune"),
    Mutant("the pull is bounded", "training/penalties.py",
           "fraction = torch.div(weight, denominator, out=denominator)",
           "fraction = torch.div(weight, denominator, out=denominator).clamp(max=0.9)",
           "laws test_huge_strength_pins_ewc_weights"),
    Mutant("distillation is bounded", "methods/distill.py", "self.strength * torch.stack",
           "min(self.strength, 0.01) * torch.stack", "laws test_huge_strength_pins_distilled_logits"),
    Mutant("an anchor has a graph", "methods/l2sp.py", "value.detach().clone()", "value.clone()",
           "laws test_memory_is_tensors_and_round_trips[l2sp"),
    Mutant("the optimizer starts anew", "training/checkpoints.py",
           '_unpack(state.optimizer, _load(path / "optimizer.safetensors"))', "pass",
           "laws test_resuming_is_bit_identical[ewc(images=16)]"),
    Mutant("seeds differ by process", "seeding.py", "int.from_bytes(hashlib",
           "(hash(text) & 1) ^ int.from_bytes(hashlib",
           "laws test_resuming_in_a_new_process_is_bit_identical"),
    Mutant("warm-up moves statistics", "models/inference.py",
           "    with eval_mode(classifier), torch.inference_mode(), autocast:\n        batches",
           "    with torch.inference_mode(), autocast:\n        batches", "training test_batchnorm"),
    Mutant("columns of other weights are recalled", "models/inference.py",
           "{tensor_digest(weights)} {tensor_digest(inputs)}",
           "{tensor_digest(inputs)}", "recall test_changed_weights_miss_the_cache"),
    Mutant("a damaged file is recalled", "models/tensor_cache.py", "!= tensor_digest(tensors)", "== b''",
           "recall test_damaged_file_is_recomputed"),
    Mutant("emulated bf16 is tried", "training/precision.py", "if computes_bf16(device) else", "if True else",
           "precision test_emulated_bf16_is_not_tried"),
    Mutant("a grown copy passes through half precision", "models/classifier.py", "grown = copy.deepcopy(classifier)",
           "grown = copy.deepcopy(classifier).half().float()",
           "laws test_old_logits_start_as_the_parents[test_resnet-fine"),
    Mutant("another view's answer is recorded", "methods/distill.py",
           '[name][index[missing], view[missing]] = logits', '[name][index[missing], 1 - view[missing]] = logits',
           "laws test_recorded_logits_are_the_parents_on_the_same_view"),
    Mutant("the teacher is asked again", "methods/distill.py",
           'memory["recorded"][index[missing], view[missing]] = True', "pass", "laws test_teacher_runs_once_per_view"),
    Mutant("every slot is always used", "methods/composition.py", "if slot in used})", "})",
           "laws test_composing_one_method_changes_nothing"),
    Mutant("only the first of a sum answers", "methods/composition.py",
           "method.response(step, memory.get(name, {})) for name, method in methods.items() if",
           "method.response(step, memory.get(name, {})) for name, method in list(methods.items())[:1] if",
           "laws test_order_of_methods_does_not_matter"),
    Mutant("late classes are favored", "losses.py", "outputs[task].float(), target",
           "outputs[task].float() + torch.arange(outputs[task].shape[1]), target",
           "laws test_permuting_classes_permutes_predictions[frozen]"),
    Mutant("si forgets the newest head", "methods/si.py",
           'path_importance(memory["path"], ',
           'path_importance({n: memory["path"][n] for n in inherited_parameters(classifier)}, ',
           "laws test_memory_protects_a_third_task_without_old_images[si"),
    Mutant("frozen statistics move", "models/classifier.py", "(trainable and not any(trainable))", "False",
           "laws test_freezing_methods_keep_old_logits_bit_identical"),
    Mutant("lora is dropped, not merged", "methods/lora.py", "module.merge()", "pass",
           "laws test_merged_lora_keeps_logits_and_names structure test_lora_matches_reference"),
    Mutant("wise counts from the child", "methods/wise.py", 'memory["start"], end, weight',
           'end, memory["start"], weight', "laws test_wise_interpolates_from_parent_to_child"),
    Mutant("importance is measured in train mode", "curvature/fisher.py",
           "with eval_mode(model), torch.inference_mode(False)", "with torch.inference_mode(False)",
           "laws test_importance_does_not_depend_on_batch_or_mode defects test_importance_runs"),
    Mutant("kept importance is not read", "methods/anchored.py", "measured.get(name), recorded.get(name))",
           "measured.get(name))",
           "chains test_importance_survives_an_extension_without_it"),
    Mutant("a grown head claims old extras", "models/classifier.py", "grown.inherited_extras = len(classifier.extras)",
           "grown.inherited_extras = 0", "chains test_importance_survives_an_extension_without_it"),
    Mutant("heads come back from disk reading one column", "bundle/architecture.py",
           "specs = [HeadSpec(shape.task, *shape.columns) for shape in heads]",
           "specs = [HeadSpec(shape.task, shape.columns[0], shape.columns[0] + 1) for shape in heads]",
           "chains test_methods_can_alternate_in_a_chain"),
    Mutant("added classes stand before old ones", "models/classifier.py", "torch.cat(logits, 1)",
           "torch.cat(logits[::-1], 1)",
           "chains test_added_classes_leave_old_logits_unchanged"),
    Mutant("layers of the network are left out", "bundle/matching.py", "    if left:\n", "    if False:\n",
           "matching test_layers_that_the_network_lacks_are_refused"),
    Mutant("patches of another architecture are resampled", "bundle/matching.py",
           "and not POSITION.search(name):", "and False:",
           "matching test_patches_of_another_architecture_are_not_resampled"),
    Mutant("averaged weights come last", "bundle/matching.py", "return not AVERAGED.search(place)",
           "return bool(AVERAGED.search(place))", "matching test_checkpoint_of_timms_training_script"),
]  # fmt: skip

DEFECTS = [
    Mutant("D1 the mean is over a chunk", "curvature/fisher.py", "(total / count)", "(total / chunk)",
           "defects test_fisher_is_independent_of_batch_and_chunk"),
    Mutant("D1 the gradient is the batch's mean", "curvature/fisher.py",
           "return {item.task: compute_cotangent(p[item.task], item)}",
           "return {item.task: compute_cotangent(p[item.task], item).mean(0, True).expand(len(p[item.task]), -1)}",
           "defects test_fisher_is_independent_of_batch_and_chunk"),
    Mutant("D2 weights are held from the second extension on", "methods/anchored.py",
           "if not old_class_counts(classifier):",
           "if len(old_class_counts(classifier)) < 2:", "defects test_pretrained_network"),
    Mutant("D2 answers are kept from the second extension on", "methods/lwf.py", "if not step.old and",
           "if len(step.old) < 2 and", "defects test_pretrained_network"),
    Mutant("D3 the teacher is in train mode", "training/loop.py",
           "        with eval_mode(classifier):\n", "        if True:\n", "defects test_teacher_runs"),
    Mutant("D4 modes are not put back", "models/eval_mode.py", "            module.training = training",
           "            module.training = False", "defects test_importance_runs"),
    Mutant("D5 the recorded image is not normalized", "training/loop.py",
           "functional_call(classifier, params, (rows,))", "functional_call(classifier, params, (rows * 0.25 + 0.5,))",
           "defects test_recorded_logits_belong_to_the_same_view"),
    Mutant("D6 weighted by p once more", "curvature/labels.py", "torch.full((rows,), c), p_BK[:, c])",
           "torch.full((rows,), c), p_BK[:, c] ** 2)", "defects test_fisher_is_the_expectation_over_model_labels"),
    Mutant("D7 draws depend on the chunk", "curvature/labels.py", "hash_uniforms(seed, task, start, rows, draws)",
           "hash_uniforms(seed, task, 0, rows, draws)", "defects test_sampled_labels_work_for_any_batch"),
    Mutant("D8 half of the earlier importance", "methods/anchored.py", "added[name] + old", "(added[name] + old) / 2",
           "defects test_importance_of_the_first_task_enters_a_chain_unscaled"),
    Mutant("D9 the strength is bounded", "losses.py", "(penalty.strength / 2)", "(min(penalty.strength, 2.0) / 2)",
           "defects test_penalty_is_linear_in_strength"),
    Mutant("D9 a second constant in lwf", "methods/lwf.py", "self.strength * torch", "3 * self.strength**0.5 * torch",
           "defects test_penalty_is_linear_in_strength"),
    Mutant("D9 importances are cut off", "curvature/fisher.py", "(total / count).contiguous()",
           "(total / count).clamp(max=1e4).contiguous()", "defects test_importance_is_not_clipped"),
    Mutant("D9 importances are raised", "curvature/fisher.py", "(total / count).contiguous()",
           "(total / count).clamp(min=1e-8).contiguous()", "defects test_importance_is_not_clipped"),
    Mutant("D10 no displacement", "curvature/path_integral.py", "moved.square()", "0 * moved",
           "defects test_path_integral_matches_the_closed_form"),
    Mutant("D11 forgetting is the child's accuracy", "pipeline/measuring.py",
           '"forgetting": before - after',
           '"forgetting": after', "training test_forgetting_is_measured_on_validation_images"),
    Mutant("D11 measured on training images", "pipeline/measuring.py",
           "predict(classifier, images.old_val, cache=tensor_cache)",
           "predict(classifier, images.new.train)", "training test_forgetting_is_measured_on_validation_images"),
    Mutant("D11 distill stores what it learns from", "methods/distill.py",
           'memory["parent"] = pytree.state(classifier)',
           'memory["parent"] = {**pytree.state(classifier), "pixels": sources.new.pixels.clone()}',
           "training test_checkpoints_contain_no_training_image"),
    Mutant("D11 replay keeps images unasked", "methods/replay.py", "memory if self.keep else {}", "memory",
           "training test_only_replay_keeps_images methods test_replay_adds_old_images"),
    Mutant("D12 T instead of T squared", "losses.py", "divergence * temperature**2", "divergence * temperature",
           "training test_distillation_scales_with_temperature_squared methods test_lwf_and_distill_match_reference"),
    Mutant("D13 decay by default", "config.py",
           "weight_decay: Annotated[float, Range(0, 0.1, at_least=0)] = field(\n        default=0.0,",
           "weight_decay: Annotated[float, Range(0, 0.1, at_least=0)] = field(\n        default=2e-4,",
           "training test_weight_decay_defaults_to_0"),
    Mutant("D13 old rows get gradients of 0", "training/loop.py", "loss = torch.stack(list(terms.values())).sum()",
           "loss = torch.stack([*terms.values(), *(0 * v.sum() for v in classifier.parameters())]).sum()",
           "training test_rows_without_gradient_do_not_decay"),
    Mutant("D14 statistics start anew", "models/classifier.py", "grown = copy.deepcopy(classifier)",
           "grown = copy.deepcopy(classifier)\n    for m in grown.modules():\n"
           "        m.reset_running_stats() if isinstance(m, nn.BatchNorm2d) else None", "training test_batchnorm"),
    Mutant("quadratic has no gradient", "losses.py", "params[name] - anchor", "params[name].detach() - anchor",
           "losses test_quadratic"),
    Mutant("D15 the penalty's gradient is counted as the loss's", "training/loop.py",
           "    if method.observe:  # of the objective",
           "    penalties.add_gradients(params, on_weights.values())\n    if method.observe:  # of the objective",
           "training test_penalty_builds_no_graph methods test_si_matches_reference"),
    Mutant("D16 old logits are masked", "models/classifier.py", ".append(head(columns))",
           ".append(head(columns) if head is self.heads[-1] else head(columns) - 1000.0)", "training test_old_logits"),
    Mutant("D17 test images choose", "pipeline/measuring.py",
           'sets = {"new": predict(classifier, images.new.val, cache=tensor_cache)}',
           'sets = {"new": predict(classifier, images.new.test or images.new.val)}', "training test_test_images"),
    Mutant("D18 importances are 0", "methods/anchored.py", "total += term.to(total.device)",
           "total += 0 * term.to(total.device)", "defects test_importances_and_penalties_are_positive"),
]  # fmt: skip

METHODS = [
    Mutant("l2sp pulls half", "training/penalties.py", "alpha=item.strength)", "alpha=item.strength / 2)",
           "methods test_l2sp_matches_reference"),
    Mutant("l2sp steps too far", "training/penalties.py", "fraction = pull / (pull + 1.0)",
           "fraction = pull", "methods test_l2sp_matches_reference"),
    Mutant("mas measures the norm by half", "curvature/fisher.py", "task: 2 * outputs[task].detach()",
           "task: outputs[task].detach()", "methods test_mas_and_ewc_match_reference"),
    Mutant("ewc squares importances", "training/penalties.py",
           "gradient.addcmul_(value - target, weight, value=item.strength)",
           "gradient.addcmul_(value - target, weight**2, value=item.strength)",
           "methods test_mas_and_ewc_match_reference"),
    Mutant("si turns the path around", "curvature/path_integral.py", "(old - new)", "(new - old)",
           "methods test_si_matches_reference"),
    Mutant("si rewards drifting", "curvature/path_integral.py", ".clamp(min=0)", "",
           "methods test_si_importance_is_not_negative"),
    Mutant("si protects by nothing", "methods/si.py", "if missing and self.strength and", "if False and",
           "methods test_si_without_recorded_path_is_refused"),
    Mutant("lwf has T squared", "methods/lwf.py", 'self.temperature, "none")', 'self.temperature, "T2")',
           "methods test_lwf_and_distill_match_reference"),
    Mutant("frozen is not", "methods/frozen.py", "return freeze(classifier)", "return classifier",
           "methods test_frozen_matches_reference"),
    Mutant("wise takes the worst", "methods/wise.py", "best = path[max(", "best = path[min(",
           "methods test_wise_chooses"),
    Mutant("wise leaves statistics behind", "pytree.py", "weight) if value.is_floating_point() else",
           'weight) if value.is_floating_point() and "running" not in name else', "methods test_wise_chooses"),
    Mutant("replay ignores its share", "methods/replay.py", "round(self.share * len(batch.images))",
           "len(batch.images)", "methods test_replay_adds_old_images"),
    Mutant("replay calls new images class 0", "data/augmentation.py", "torch.full((count,), -1))",
           "torch.full((count,), 0))", "methods test_replay_adds_old_images"),
    Mutant("replay wants its sample again", "methods/replay.py", "if old is None and not past:", "if old is None:",
           "methods test_kept_replay_needs_no_old_sample"),
    Mutant("lora's rank is not its rank", "methods/lora.py", "r=self.rank,", "r=4 * self.rank,",
           "structure test_lora_matches_reference"),
    Mutant("branch always starts at the first stage", "methods/branch.py", "round(self.shared * (len(points) - 1))",
           "0",
           "structure test_branch_trains_only_its_copy"),
    Mutant("branch's copy is the original", "models/feature_points.py", "fx.GraphModule(copy.deepcopy(net), rest)",
           "fx.GraphModule(net, rest)", "structure test_branch_trains_only_its_copy"),
    Mutant("taps read the last stage alone", "methods/taps.py", "[*(points[i] for i in spaced), feature_points.LAST]",
           "[feature_points.LAST]", "structure test_taps_find_early_features"),
    Mutant("taps are not centred", "models/side_networks.py", "self.center = columns.mean(0)",
           "self.center = torch.zeros_like(columns[0])", "structure test_taps_standardize_every_stage"),
    Mutant("a ladder lets the network below it learn", "methods/ladder.py", "return freeze(classifier)",
           "return classifier", "structure test_ladder_matches_reference"),
    Mutant("a ladder's rungs stand at the largest images", "methods/ladder.py", "key=points.index)[-count:]",
           "key=points.index)[:count]", "structure test_ladder_matches_reference"),
    Mutant("a ladder's rungs are not joined", "models/side_networks.py",
           "if below is not None and self.carry is not None:", "if below is None:",
           "structure test_ladder_matches_reference"),
    Mutant("an old checkpoint is removed where it stands", "training/checkpoints.py",
           "    os.replace(checkpoint, deleted)\n",
           "    deleted = checkpoint\n", "state test_kill_during_deletion"),
]  # fmt: skip


TOGETHER = [
    Mutant("gradients are not added up", "distributed/gradients.py", "    exchange.finish()\n", "",
           "parallel test_two_processes_equal_one"),
    Mutant("gradients travel after the backward pass", "distributed/gradients.py",
           "        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:\n",
           "        while False:\n", "parallel test_gradients_travel"),
    Mutant("each process sends its buckets in an order of its own", "distributed/gradients.py",
           "in used][::-1])", "in used][:: -1 if dist.get_rank() else 1])", "parallel test_gradients_travel"),
    Mutant("the sum of each micro-batch travels", "training/micro_batching.py",
           "is_last = index + 1 == len(self._micro_batches)", "is_last = True",
           "parallel test_micro_batches_of_three"),
    Mutant("what is compiled has another name in the state", "training/loop.py",
           "    average, compiler = _build_average(classifier, config), build_compiler(config)\n",
           "    average, compiler = _build_average(classifier, config), build_compiler(config)\n"
           "    if compiler:\n        classifier.backbone = torch.compile(classifier.backbone)\n",
           "compiled test_a_compiled_run"),
    Mutant("each process has statistics of its own", "training/micro_batching.py",
           "        distributed.sync_batchnorm(),\n", "",
           "parallel test_two_processes_equal_one"),
    Mutant("a gradient knows nothing of the others' statistics", "distributed/batchnorm.py",
           "        dist.all_reduce(total)\n", "",
           "parallel test_batchnorm_statistics_are_global parallel test_two_processes_equal_one"),
    Mutant("each process measures its Fisher alone", "curvature/fisher.py",
           "    distributed.all_reduce(sums.values())\n", "", "parallel test_two_processes_equal_one[ewc"),
    Mutant("gathered rows are shifted", "distributed/group.py", "ctx.rows = local_slice(count)",
           "ctx.rows = local_slice(count - 1)",
           "parallel test_three_processes_equal_one parallel test_batchnorm_statistics_are_global"),
    Mutant("dropout's noise shifts statistics twice", "training/micro_batching.py",
           "                value.copy_(buffers[name])  # the second pass counts\n", "                pass\n",
           "pieces test_batchnorm_statistics_move_once"),
    Mutant("micro-batches learn from the first one's gradient", "training/micro_batching.py",
           "            start += len(batch)\n", "",
           "pieces test_micro_batches_give_equal"),
    Mutant("a step that ran out of memory is not repeated", "training/trainer.py",
           "            state = restored\n", "            pass\n", "pieces test_out_of_memory_doubles"),
    Mutant("the teacher is asked at every step", "methods/distill.py",
           '        memory["recorded"][index[missing], view[missing]] = True\n', "        pass\n",
           "costs test_recorded_logits_need_no_pass_of_the_parent laws test_teacher_runs_once_per_view"),
    Mutant("weights are copied whole in the penalty", "training/penalties.py",
           "        for theta, target, weight in pytree.blocks(params[name], anchor, item.importance[name]):",
           "        for theta, target, weight in [(params[name].clone(), anchor.clone(), item.importance[name])]:",
           "costs test_penalty_takes_few_calls_per_tensor laws test_positive_strength_differs_from_finetune"),
]  # fmt: skip
ALL = (*LAWS, *DEFECTS, *METHODS, *TOGETHER)


def collected() -> list[str]:
    """The ids of all tests that a mutant may name."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *FILES.values()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


def named(mutant: Mutant, known: list[str]) -> list[str]:
    """The ids of a mutant's tests; each of its words is the start of a test's name, after its file's key."""
    words = mutant.tests.split()
    starts = tuple(f"{FILES[key]}::{start}" for key, start in zip(words[::2], words[1::2], strict=True))
    return [name for name in known if name.startswith(starts)]


def tested(root: Path, names: list[str]) -> tuple[int, str]:
    """Pytest's exit code for tests on the package in `home`, 1 = at least one failed, and what it said."""
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", *names]
    done = subprocess.run(command, cwd=ROOT, env=environment(root), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def environment(root: Path) -> dict[str, str]:
    """The copy comes before the installed package, on one thread, and leaves no compiled files in the tree."""
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def verdict(root: Path, mutant: Mutant, known: list[str]) -> str:
    """Apply a mutant, run its tests, take it back; say what came of it."""
    path = root / "taskgraft" / mutant.file
    text, names = path.read_text(encoding="utf-8"), named(mutant, known)
    if mutant.old not in text or not names:
        return "NOT FOUND" if names else "NO TESTS"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code, _ = tested(root, names)
        return {0: "SURVIVED", 1: "caught"}.get(code, f"BROKEN {code}")
    finally:
        path.write_text(text, encoding="utf-8")


def main(expected: list[str]) -> int:
    """Run all mutants, or those whose names contain one of the words given; 1 if any is not caught."""
    chosen = [m for m in ALL if not expected or any(word in m.name for word in expected)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "src"
        shutil.copytree(ROOT / "src", root, ignore=shutil.ignore_patterns("__pycache__"))
        code = "import taskgraft, torch; print(taskgraft.__file__)"
        found = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment(root), capture_output=True, text=True, check=True
        ).stdout.strip()
        assert Path(found).is_relative_to(root), f"the tests would import {found}, not the copy"
        known = collected()
        code, output = tested(root, list(dict.fromkeys(name for mutant in chosen for name in named(mutant, known))))
        if code != 0:
            print(f"{output}\nthe tests fail without any mutation; mend that first")
            return 1
        width = max(len(mutant.name) for mutant in chosen)
        print(f"{'mutant':{width}}  {'result':9}  tests")
        results = []
        for mutant in chosen:
            results.append(verdict(root, mutant, known))
            print(f"{mutant.name:{width}}  {results[-1]:9}  {mutant.tests}", flush=True)
    caught = results.count("caught")
    print(f"{caught} of {len(results)} caught")
    return int(caught != len(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
