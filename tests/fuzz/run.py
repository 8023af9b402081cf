"""One fuzz run of one target in this process, under atheris: started by ``python -m tests.fuzz``, it never returns."""

from __future__ import annotations

import contextlib
import sys
from random import Random

import atheris

from tests.fuzz.target import load

PRODUCT = ["protocol", "shared", "primary_agent", "replica_agent"]


def main() -> None:
    # Target, the name of a planted bug or "", then libFuzzer's own options and folders.
    program, name, planted, *options = sys.argv
    with atheris.instrument_imports(include=PRODUCT):
        target = load(name)
    structured = target.mutate

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        if structured is None or random.random() < 0.2:
            mutated: bytes = atheris.Mutate(data, max_size)
            return mutated
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            data = structured(data, random)
        return data[:max_size]

    atheris.Setup([program, f"-max_len={target.max_bytes}", *options], target.fuzz, custom_mutator=mutate)
    plant = {plant.name: plant.apply for plant in target.plants}.get(planted, contextlib.nullcontext)
    with plant():
        atheris.Fuzz()


if __name__ == "__main__":
    main()
