"""The defects that the tests must notice: where, what one line becomes, and which tests should turn red."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True)
class Mutant:
    """One defect.

    Args:
        name: what is wrong, in a few words.
        file: below src/modulewise.
        old: text that is there exactly once; of several lines where one alone is not unique.
        new: what it becomes, different in one line.
        tests: node ids, below tests/; the narrowest that must turn red.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


DEFECTS = "tests/test_defects.py::"
ENGINE = "tests/engine/"
METHODS = "tests/methods/"

MUTANTS = (
    Mutant(
        "the detach of a boundary is dropped",
        "engine/local.py",
        "self.dtypes[part] = h_out.detach(), h_out.dtype",
        "self.dtypes[part] = h_out, h_out.dtype",
        (DEFECTS + "test_a_part_is_forgotten_before_the_next_one_runs",),
    ),
    Mutant(
        "two readers share one boundary",
        "engine/local.py",
        "h = self.boundaries[index].detach()",
        "h = self.boundaries[index]",
        (DEFECTS + "test_two_readers_of_a_boundary_send_a_gradient_each",),
    ),
    Mutant(
        "a reported loss keeps its graph",
        "objective.py",
        "return value.detach()",
        "return value",
        (DEFECTS + "test_reported_losses_hold_no_graph",),
    ),
    Mutant(
        "the optimiser skips the heads",
        "engine/local.py",
        "self._update(part, (Role.PART, objective.role), finite)",
        "self._update(part, (Role.PART,), finite)",
        (DEFECTS + "test_every_head_learns_and_no_gradient_stays",),
    ),
    Mutant(
        "gradients are not let go after a step",
        "engine/updating.py",
        "optimizer.zero_grad(set_to_none=True)\n            if role is Role.PART:",
        "pass\n            if role is Role.PART:",
        (ENGINE + "test_memory_of_parts.py::test_no_gradient_is_left_after_a_step",),
    ),
    Mutant(
        "a side input is stood in for",
        "partition/plans.py",
        "needed = needed_before(self.small, start, side)",
        "needed: set[int] = set()",
        (DEFECTS + "test_what_the_batch_alone_determines_is_recomputed",),
    ),
    Mutant(
        "all parts draw from one generator",
        "engine/local.py",
        "set_generators(seed_of(self.engine.seed, self.micro.draw, index))",
        "set_generators(seed_of(self.engine.seed, self.micro.draw))",
        (DEFECTS + "test_draws_belong_to_seed_step_and_part",),
    ),
    Mutant(
        "all heads draw from one seed",
        "engine/binding.py",
        'set_generators(seed_of(seed, "heads", part.index))',
        'set_generators(seed_of(seed, "heads"))',
        (DEFECTS + "test_heads_of_equal_shape_start_apart",),
    ),
    Mutant(
        "the caller's generator is moved",
        "seeding.py",
        "torch.set_rng_state(cpu)",
        "pass",
        (DEFECTS + "test_a_step_leaves_the_callers_generator_alone",),
    ),
    Mutant(
        "recomputing a part updates statistics",
        "partition/partition.py",
        "            if recomputing:",
        "            if False:",
        (ENGINE + "test_recompute.py::test_statistics_are_updated_once_a_step",),
    ),
    Mutant(
        "recomputing inside a part updates statistics",
        "partition/pieces.py",
        "_Repeatedly(lambda: scratch_buffers(self.model))",
        "nullcontext()",
        (ENGINE + "test_recompute.py::test_statistics_are_updated_once_a_step",),
    ),
    Mutant(
        "autocast caches weights",
        "engine/local.py",
        "dtype=dtype, cache_enabled=False)",
        "dtype=dtype, cache_enabled=True)",
        (DEFECTS + "test_the_next_forward_sees_the_new_weights_in_lower_precision",),
    ),
    Mutant(
        "finished parts run in train mode",
        "engine/features.py",
        "with torch.no_grad(), evaluating(partition.model):",
        "with torch.no_grad():",
        ("tests/contracts/test_equalities.py::test_frozen_parts_stay_bit_identical_in_sequential",),
    ),
    Mutant(
        "global methods clip every part apart",
        "trainer.py",
        "together=clip_norm is not None and method.locality.reach is Reach.GLOBAL,",
        "together=False,",
        (DEFECTS + "test_global_methods_clip_the_norm_of_all_parts_together",),
    ),
    Mutant(
        "slices of another size weigh the same",
        "engine/batches.py",
        "rows=self.sizes[i],",
        "rows=1,",
        (DEFECTS + "test_uneven_slices_accumulate_to_the_batch",),
    ),
    Mutant(
        "a loss that is not finite goes unnoticed",
        "engine/updating.py",
        "        if not finite:",
        "        if False:",
        (DEFECTS + "test_a_loss_that_is_not_finite_stops_before_its_part",),
    ),
    Mutant(
        "a bad step on a device is kept",
        "engine/updating.py",
        "parameter.copy_(torch.where(finite, parameter, old))",
        "parameter.copy_(torch.where(finite, parameter, parameter))",
        (DEFECTS + "test_a_guarded_step_takes_the_weights_back",),
    ),
    Mutant(
        "the name of the newest checkpoint is written in place",
        "checkpoint.py",
        'pointer = folder / ".latest"',
        "pointer = folder / LATEST",
        (DEFECTS + "test_a_save_that_breaks_off_leaves_the_last_checkpoint",),
    ),
    Mutant(
        "the audit does not look at weights",
        "checks/locality.py",
        '"weights": _other_weights,',
        '"weights": _other_head,',
        (DEFECTS + "test_the_audit_catches_a_part_that_reads_later_weights",),
    ),
    Mutant(
        "an evaluation counts batches",
        "engine/evaluating.py",
        "total += float(loss(output, y)) * n",
        "total += float(loss(output, y)) * samples",
        (DEFECTS + "test_the_mean_over_a_data_set_counts_samples",),
    ),
    Mutant(
        "balanced cuts are off by one",
        "balance.py",
        "ends.append(stop - 1)",
        "ends.append(stop)",
        (DEFECTS + "test_balanced_cuts_are_the_best_of_all",),
    ),
    Mutant(
        "a view counts as memory of its own",
        "metering/ledger.py",
        "key, nbytes = storage._cdata, storage.nbytes()",
        "key, nbytes = id(tensor), storage.nbytes()",
        ("tests/metering/test_metering_storages.py::test_views_and_in_place_operators_do_not_count",),
    ),
    Mutant(
        "every epoch has the same order",
        "data/loader.py",
        'seed_of(self.seed, "order", epoch)',
        'seed_of(self.seed, "order")',
        ("tests/data/test_loader.py::test_an_epoch_hands_out_every_sample_once_in_an_order_of_its_own",),
    ),
    Mutant(
        "the pairwise objective is minimised",
        "methods/proxy/kernel_proxy.py",
        "return Signal(loss=-value)",
        "return Signal(loss=value)",
        (METHODS + "test_proxy_objectives.py::test_kernel_proxy_descends_minus_the_objective",),
    ),
    Mutant(
        "the difference of inverses has the other sign",
        "methods/targets/difference_target_propagation.py",
        "return h_in + from_target - from_output",
        "return h_in - from_target + from_output",
        (METHODS + "test_target_objectives.py::test_with_exact_inverses_targets_are_the_inverse_images",),
    ),
    Mutant(
        "the first target forgets the batch size",
        "methods/targets/difference_target_propagation.py",
        "return h - step_size * len(h) * gradient",
        "return h - step_size * gradient",
        (METHODS + "test_target_objectives.py::test_two_parts_follow_the_true_gradient",),
    ),
    Mutant(
        "labels are sent instead of the output error",
        "methods/gradients/direct_feedback_alignment.py",
        "return dict.fromkeys(self._receivers, error)",
        "return dict.fromkeys(self._receivers, torch.eye(error.shape[1])[context.y])",
        (METHODS + "test_gradient_objectives.py::test_direct_feedback_alignment_is_the_closed_form",),
    ),
    Mutant(
        "errors pass back by the weight itself",
        "layer_rules.py",
        "weight = self._weight(name, module)",
        "weight = module.weight",
        ("tests/test_layer_rules.py::test_untied_the_error_passes_by_b_and_weights_learn_by_the_chain_rule",),
    ),
    Mutant(
        "a part hears one sender alone",
        "methods/reference/backprop.py",
        "total = total + gradient",
        "total = gradient",
        (
            METHODS
            + "test_reference_objectives.py::test_a_boundary_read_by_three_later_parts_gets_the_bits_of_autograd",
        ),
    ),
    Mutant(
        "the weights of the two local errors are swapped",
        "methods/proxy/predsim_objective.py",
        "terms.append((1 - self.beta) * self.targets.prediction(",
        "terms.append(self.beta * self.targets.prediction(",
        (METHODS + "test_proxy_objectives.py::test_predsim_equals_the_literal_formula",),
    ),
    Mutant(
        "a sweep forgets the penalty of the activations",
        "methods/auxiliary/bcd_updates.py",
        "return (gamma * v + rho * affine) / (gamma + rho)",
        "return (gamma * v + rho * affine) / rho",
        (METHODS + "test_bcd_updates.py::test_output_blocks_are_minimisers",),
    ),
)
