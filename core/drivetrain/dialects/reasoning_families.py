"""The table of families that mark their reasoning, in the order of the choice."""

from __future__ import annotations

from drivetrain.dialects.forms import ReasoningFamily

REASONING_FAMILIES: dict[str, ReasoningFamily] = {
    "harmony": ReasoningFamily(models="gpt-oss", signs=(("<|channel|>", "<|message|>"),), channels=True),
    "mistral": ReasoningFamily(models="Magistral", signs=(("[THINK]",),), open="[THINK]", close="[/THINK]"),
    "command": ReasoningFamily(
        models="Command R7B, Command A",
        signs=(("<|START_THINKING|>",), ("<|START_RESPONSE|>",)),
        open="<|START_THINKING|>",
        close="<|END_THINKING|>",
        dropped=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    "seed_oss": ReasoningFamily(
        models="Seed-OSS", signs=(("<seed:think>",),), open="<seed:think>", close="</seed:think>"
    ),
    "kimi_vl": ReasoningFamily(models="Kimi-VL Thinking", signs=(("◁think▷",),), open="◁think▷", close="◁/think▷"),
    "granite": ReasoningFamily(
        models="Granite 3.2, 3.3",
        signs=(("Here is my thought process:",),),
        open="Here is my thought process:",
        close="Here is my response:",
    ),
    "hunyuan": ReasoningFamily(
        models="Hunyuan",
        signs=(("<think>", "<answer>"),),
        open="<think>",
        close="</think>",
        dropped=("<answer>", "</answer>"),
    ),
    "think": ReasoningFamily(
        models="DeepSeek R1 and V3.1, Qwen3, QwQ, GLM-4.5, MiniMax, Kimi K2 Thinking, SmolLM3, Nemotron, and others",
        signs=(("<think>",), ("</think>",)),
        open="<think>",
        close="</think>",
    ),
}
"""By name, as `reasoning_parser` takes it."""
