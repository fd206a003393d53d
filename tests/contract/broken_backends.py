"""Backends that are wrong in one way each: what the conformance suite must catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from drivetrain_cpu.allocator import CpuAllocator
from drivetrain_cpu.attention import CpuAttention
from drivetrain_cpu.backend import CpuBackend, CpuDevice
from drivetrain_cpu.ops import CpuOps
from drivetrain_cpu.runtime import CpuRuntime, Fetched
from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.attention import PagedAttention
from drivetrain_plugins.contract.batch import FREQUENCY, MIN_P, SEED_HIGH, SampleFeatures
from drivetrain_plugins.errors import OutOfMemory


@dataclass(frozen=True)
class Fault:
    """One way to be wrong: `spoil` is applied to an opened device, and `caught_by` is the check that must see it."""

    spoil: Callable[[CpuDevice], None]
    caught_by: str


FAULTS: dict[str, Fault] = {}


def fault(caught_by: str):
    """Collect a function as a fault, under its own name."""

    def collect(spoil: Callable[[CpuDevice], None]) -> Callable[[CpuDevice], None]:
        FAULTS[spoil.__name__] = Fault(spoil, caught_by)
        return spoil

    return collect


def backend_with(name: str) -> type[CpuBackend]:
    """A CPU backend with one fault."""

    class Broken(CpuBackend):
        def open(self, rank, options):
            device = super().open(rank, options)
            FAULTS[name].spoil(device)
            return device

    return Broken


# -- attention


class Composed(CpuAttention):
    """The CPU's attention put together from its smaller parts, where faults can be planted."""

    attention = PagedAttention.attention


def _with_spec(change):
    """Attention that sees another spec than it was given."""

    class Wrong(Composed):
        def attend(self, q_THK, layer, cache, plan):
            return super().attend(q_THK, replace(layer, **change(layer)), cache, plan)

    return Wrong()


@fault("attention.grouped_heads")
def scale_two_percent_too_large(device):
    device.attention = _with_spec(lambda layer: {"spec": replace(layer.spec, scale=layer.spec.scale * 1.02)})


@fault("attention.windows")
def window_one_too_long(device):
    device.attention = _with_spec(
        lambda layer: {"spec": replace(layer.spec, window=layer.spec.window and layer.spec.window + 1)}
    )


@fault("attention.soft_caps")
def soft_cap_left_out(device):
    device.attention = _with_spec(lambda layer: {"spec": replace(layer.spec, soft_cap=None)})


@fault("attention.sinks")
def sinks_left_out(device):
    device.attention = _with_spec(lambda layer: {"sinks_H": None})


@fault("attention.alibi")
def alibi_by_the_wrong_head(device):
    device.attention = _with_spec(lambda layer: {"alibi_H": None if layer.alibi_H is None else layer.alibi_H.flip(0)})


@fault("attention.grouped_heads")
def unused_slots_leak(device):
    class Leaking(Composed):
        def attend(self, q_THK, layer, cache, plan):
            return super().attend(q_THK, layer, cache, plan) + 0 * cache.layers[layer.index].sum().to(q_THK.dtype)

    device.attention = Leaking()


def _keeping_old(tokens: slice):
    """Attention that does not write some of the step's tokens."""

    class Forgetful(Composed):
        def write(self, k_TGK, v_TGK, layer, cache, plan):
            heads, size = layer.spec.num_kv_heads, layer.spec.head_dim
            lines = cache.layers[layer.index].view(-1, size)
            index = plan.write_index_of(heads).view(-1, 2 * heads)[tokens].flatten()
            old = lines[index].clone()
            super().write(k_TGK, v_TGK, layer, cache, plan)
            lines[index] = old

    return Forgetful()


@fault("attention.grouped_heads")
def last_token_not_written(device):
    device.attention = _keeping_old(slice(-1, None))


@fault("model.prefill")
def first_token_not_written(device):
    device.attention = _keeping_old(slice(0, 1))


@fault("attention.grouped_heads")
def every_layer_in_the_first_layer_s_pages(device):
    class OneLayer(Composed):
        def attend(self, q_THK, layer, cache, plan):
            return super().attend(q_THK, replace(layer, index=0), cache, plan)

    device.attention = OneLayer()


@fault("attention.grouped_heads")
def last_row_of_the_output_not_written(device):
    class Unwritten(Composed):
        def attend(self, q_THK, layer, cache, plan):
            out = torch.empty_like(q_THK)
            out[:-1] = super().attend(q_THK, layer, cache, plan)[:-1]
            return out

    device.attention = Unwritten()


@fault("attention.queries_and_keys")
def rotary_one_position_late(device):
    class Late(Composed):
        def positions(self, plan):
            return super().positions(plan) + (super().positions(plan) > 0)

    device.attention = Late()


@fault("attention.a_padded_prompt")
def padded_prompt_taken_for_a_decode_step(device):
    class Hasty(Composed):
        def attend(self, q_THK, layer, cache, plan):
            inputs = plan.inputs
            out = super().attend(q_THK, layer, cache, plan)
            if len(inputs.row_slot_R) == len(inputs.ids_T):
                out[len(inputs.row_slot_R) // 2 :] = 0
            return out

    device.attention = Hasty()


# -- runtime


@fault("runtime.stage_may_be_followed")
def stage_without_a_copy(device):
    class Late(CpuRuntime):
        pending: list[tuple[np.ndarray, torch.Tensor]] = []

        def stage(self, host, destination):
            self.pending.append((host, destination))

        def fetch(self, tensors):
            for host, destination in self.pending:
                super().stage(host, destination)
            self.pending.clear()
            return super().fetch(tensors)

    device.runtime = Late()


@fault("runtime.fetched_tensors")
def fetch_without_a_copy(device):
    class View(CpuRuntime):
        def fetch(self, tensors):
            return Fetched({name: tensor.numpy() for name, tensor in tensors.items()})

    device.runtime = View()


@fault("runtime.uploads")
def upload_that_reads_the_host_too_late(device):
    class Late(CpuRuntime):
        pending: list[tuple[torch.Tensor, torch.Tensor]] = []

        def upload(self, host, destination):
            self.pending.append((host, destination))

        def synchronize(self):
            for host, destination in self.pending:
                destination.copy_(host)
            self.pending.clear()

    device.runtime = Late()


@fault("runtime.a_recorded_step")
def replay_that_does_nothing(device):
    class Idle(CpuRuntime):
        def capture(self, step):
            return lambda: None

    device.runtime = Idle()


# -- memory


@fault("memory.copied_pages")
def only_the_first_layer_copied(device):
    class Partial(CpuAllocator):
        def copy_pages(self, cache, source, destination):
            kept = [layer.clone() for layer in cache.layers[1:]]
            super().copy_pages(cache, source, destination)
            for layer, old in zip(cache.layers[1:], kept, strict=True):
                layer.copy_(old)

    device.allocator = Partial(0.5)


@fault("memory.exported_pages")
def export_that_is_a_view(device):
    class View(CpuAllocator):
        def export_pages(self, cache, pages):
            first, last = min(pages), max(pages) + 1
            return [(layer, torch.tensor(list(pages)), first, last) for layer in cache.layers]

        def import_pages(self, cache, pages, content):
            for layer, source, _, _ in content:
                self_axis = layer.shape.index(cache.num_pages)
                layer.index_copy_(self_axis, torch.tensor(list(pages)), layer.index_select(self_axis, source))

    device.allocator = View(0.5)


@fault("memory.too_little_memory")
def out_of_memory_by_another_name(device):
    class Foreign(CpuAllocator):
        def reserve(self, spec, limits):
            try:
                return super().reserve(spec, limits)
            except OutOfMemory as error:
                raise MemoryError(str(error)) from error

    device.allocator = Foreign(0.5)


@fault("memory.more_pages")
def commit_that_promises_everything(device):
    class Generous(CpuAllocator):
        def commit(self, cache, num_pages):
            cache.num_pages = num_pages

    device.allocator = Generous(0.5)


# -- ops


@fault("op.norms")
def norm_without_epsilon(device):
    class Wrong(CpuOps):
        def norm(self, x_TD, weights):
            return reference.norm(x_TD, replace(weights, spec=replace(weights.spec, eps=1e-12)))

    device.ops = Wrong()


@fault("op.norms")
def add_norm_that_forgets_the_sum(device):
    class Wrong(CpuOps):
        def add_norm(self, delta_TD, residual_TD, weights):
            return super().add_norm(delta_TD, residual_TD, weights)[0], residual_TD

    device.ops = Wrong()


@fault("op.activations")
def approximate_gelu_for_the_exact_one(device):
    class Wrong(CpuOps):
        def activate(self, x_TF, activation):
            return super().activate(x_TF, "gelu_tanh" if activation == "gelu" else activation)

    device.ops = Wrong()


@fault("op.linear")
def last_output_row_left_as_it_was(device):
    class Wrong(CpuOps):
        def linear(self, x_TD, handle):
            right = super().linear(x_TD, handle)
            out = torch.empty_like(right)
            out[:-1] = right[:-1]
            return out

    device.ops = Wrong()


@fault("layer.decoder_layers")
def parallel_branches_one_after_the_other(device):
    class Wrong(CpuOps):
        def decoder_layer(self, delta_TD, residual_TD, layer, step, keep_K=None):
            if layer.spec.parallel == "separate":
                layer = replace(layer, spec=replace(layer.spec, parallel="no"))
            return super().decoder_layer(delta_TD, residual_TD, layer, step, keep_K)

    device.ops = Wrong()


@fault("layer.decoder_layers_keep")
def wanted_tokens_in_ascending_order(device):
    class Wrong(CpuOps):
        def decoder_layer(self, delta_TD, residual_TD, layer, step, keep_K=None):
            keep_K = None if keep_K is None else keep_K.sort().values
            return super().decoder_layer(delta_TD, residual_TD, layer, step, keep_K)

    device.ops = Wrong()


# -- step inputs and sampling


@fault("sampling.prepare")
def padding_written_to_the_first_real_page(device):
    class Wrong(CpuOps):
        def prepare(self, packed, layout, slots, page_size):
            inputs = super().prepare(packed, layout, slots, page_size)
            moved = torch.where(inputs.kv_slots_T < page_size, inputs.kv_slots_T + page_size, inputs.kv_slots_T)
            return replace(inputs, kv_slots_T=moved)

    device.ops = Wrong()


def _sampler(change):
    """A sampler that reads slots after `change` has been at a copy of their parameters."""

    class Wrong(CpuOps):
        def sample(self, logits_KV, inputs, slots, features):
            kept = slots.params_SC.clone()
            change(slots)
            sampled = super().sample(logits_KV, inputs, slots, features)
            slots.params_SC.copy_(kept)
            return sampled

    return Wrong()


@fault("sampling.draws")
def high_half_of_the_seed_ignored(device):
    device.ops = _sampler(lambda slots: slots.params_SC[:, SEED_HIGH].zero_())


@fault("sampling.filters")
def min_p_ignored(device):
    device.ops = _sampler(lambda slots: slots.floats_SC[:, MIN_P].zero_())


@fault("sampling.penalties")
def frequency_penalty_ignored(device):
    device.ops = _sampler(lambda slots: slots.floats_SC[:, FREQUENCY].zero_())


@fault("sampling.draws")
def noise_of_the_position_before(device):
    class Wrong(CpuOps):
        def sample(self, logits_KV, inputs, slots, features):
            early = replace(inputs, sample_position_K=inputs.sample_position_K - 1)
            return super().sample(logits_KV, early, slots, features)

    device.ops = Wrong()


@fault("sampling.log_probabilities")
def log_probabilities_after_penalties(device):
    class Wrong(CpuOps):
        def sample(self, logits_KV, inputs, slots, features):
            sampled = super().sample(logits_KV, inputs, slots, features)
            if features.logprobs < 0:
                return sampled
            logprobs, ranks, ids, top = self.token_logprobs(logits_KV, sampled.ids_K, features.logprobs)
            return replace(sampled, logprobs_K=logprobs, ranks_K=ranks, top_ids_Kk=ids, top_logprobs_Kk=top)

    device.ops = Wrong()


@fault("op.pooled_sums")
def sums_in_the_type_of_the_states(device):
    class Wrong(CpuOps):
        def pool(self, x_TD, spans_P2):
            return torch.stack([x_TD[first:last].sum(0) for first, last in spans_P2.tolist()]).float()

    device.ops = Wrong()


@fault("model.pooled_states")
def sums_of_one_token_too_few(device):
    class Wrong(CpuOps):
        def pool(self, x_TD, spans_P2):
            return super().pool(x_TD, np.stack((spans_P2[:, 0], np.maximum(spans_P2[:, 0] + 1, spans_P2[:, 1] - 1)), 1))

    device.ops = Wrong()


@fault("sampling.penalties")
def sampled_tokens_not_counted(device):
    class Wrong(CpuOps):
        def sample(self, logits_KV, inputs, slots, features):
            counts = None if slots.counts_SV is None else slots.counts_SV.clone()
            sampled = super().sample(logits_KV, inputs, slots, features)
            if counts is not None:
                slots.counts_SV.copy_(counts)
            return sampled

    device.ops = Wrong()


@fault("sampling.greedy")
def greedy_token_not_remembered(device):
    class Wrong(CpuOps):
        def sample(self, logits_KV, inputs, slots, features: SampleFeatures):
            kept = slots.last_token_S.clone()
            sampled = super().sample(logits_KV, inputs, slots, features)
            slots.last_token_S.copy_(kept)
            return sampled

    device.ops = Wrong()


# -- what the device says


@fault("capability.what_is_not_served")
def everything_is_supported(device):
    device.unsupported = lambda spec, limits: []


@fault("capability.shape_policy")
def captures_without_graphs(device):
    policy = device.shape_policy
    device.shape_policy = lambda limits: replace(policy(limits), max_captured_rows=4)


@fault("capability.shape_policy")
def sealed_policy_without_room_for_the_limits(device):
    policy = device.shape_policy
    device.shape_policy = lambda limits: replace(policy(limits), sealed=True, token_buckets=(16,))


@fault("capability.shape_policy")
def too_few_pages_a_step_for_the_longest_row(device):
    policy = device.shape_policy
    device.shape_policy = lambda limits: replace(policy(limits), max_total_pages=limits.max_pages - 1)


@fault("capability.shape_policy")
def pages_of_a_step_beyond_the_buckets(device):
    policy = device.shape_policy
    device.shape_policy = lambda limits: replace(policy(limits), total_page_buckets=(1, 8), max_total_pages=9)


@fault("communicator.all_reduce")
def all_reduce_of_a_copy(device):
    device.communicator.all_reduce = lambda inout: inout.clone()
