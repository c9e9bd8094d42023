"""Compiles the Triton kernels to machine code of A100 and H100, which needs Triton but no GPU."""

from __future__ import annotations

from itertools import product
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from flamingo_model.attention_kernels import attend_part, join_parts

CAPABILITIES = (80, 90)
TYPES = {"q": "*bf16", "k": "*bf16", "v": "*bf16", "out": "*bf16", "scale": "fp32"} | dict.fromkeys(
    ["blocks", "lengths"], "*i64"
)
SHAPE = {"GROUP": 2, "BLOCK_SIZE": 16, "TILE": 32}


def is_compiled(kernel: Any, constants: dict[str, Any], capability: int) -> bool:
    """Arguments that `TYPES` does not name are strides or pointers to float32."""
    names = kernel.arg_names
    types = {name: "i32" if "_" in name else "*fp32" for name in names}
    types |= {name: kind for name, kind in TYPES.items() if name in names}
    types |= dict.fromkeys(constants, "constexpr")
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, types, values)
    return bool(compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"])


def main() -> None:
    num = 0
    for capability, parts in product(CAPABILITIES, (1, 8)):
        sizes = {"HEAD_DIM": 128, "DIMS": 128, "PARTS": parts}
        rules = {"HAS_SLOPES": parts > 1, "WINDOW": 5 if parts > 1 else 0}
        num += is_compiled(attend_part, sizes | SHAPE | rules, capability)
        num += is_compiled(join_parts, sizes, capability)
    print("compiled", num, "kernels")


if __name__ == "__main__":
    main()
