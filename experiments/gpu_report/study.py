"""What is measured, in order of value: the sections of the report, and their shares of the time."""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from experiments.gpu_report import determinism, maps, parity, subject, torch_side
from experiments.gpu_report.sections import Rows, Section, Step
from experiments.gpu_report.speed import Bench
from experiments.gpu_report.subject import MODES, TINY, Mode, Plan
from experiments.gpu_report.uses import Uses

# Of the time that there is; sections that take less leave the rest to the others.
SHARES = {
    "parity": 0.26,
    "speed": 0.36,
    "maps": 0.15,
    "profile": 0.03,
    "determinism": 0.15,
    "memory": 0.05,
}


def sections(plan: Plan, weights: Path | None, seconds: float) -> list[Section]:
    """All of them, for so much time; networks are made when the first step needs them."""
    config = subject.config_of(plan, plan.arch)
    arrays = cache(partial(subject.weights_of, config, weights))
    networks = cache(lambda: torch_side.networks_of(config, arrays()))
    bench = cache(lambda: Bench(plan, config, arrays(), networks()))
    uses = cache(lambda: Uses(bench()))
    photos = partial(subject.photos, preprocessing=subject.preprocessing_of(weights))

    def page(size: tuple[int, int], batch: int) -> Rows:
        models = {mode: subject.model_of(config, arrays(), mode) for mode in MODES}
        rows = parity.check(config, models, networks(), photos(batch, size))
        return _named(f"{plan.arch}, {size[0]}x{size[1]}, batch {batch}", rows)

    def small(arch: str) -> Rows:
        other = subject.config_of(plan, arch)
        drawn = subject.random_weights(other)
        models = {mode: subject.model_of(other, drawn, mode) for mode in MODES}
        images = subject.photos(1, (plan.small, plan.small), "torchvision")
        rows = parity.check(other, models, torch_side.networks_of(other, drawn), images)
        return _named(f"{arch}, {plan.small}x{plan.small}, batch 1, random weights", rows)

    @cache
    def heads(head: str):
        if head == "classifier":
            return subject.model_of(config, arrays()), networks()
        gap, weights_of_gap = subject.gap_of(config, arrays())
        return subject.model_of(gap, weights_of_gap), torch_side.networks_of(gap, weights_of_gap)

    def one_map(head: str, method: str) -> Rows:
        images = photos(plan.map_images, (plan.size, plan.size))
        classes = list(range(plan.several))[:2]
        return [{"head": head, **maps.check(*heads(head), images, method, classes)}]

    def parity_steps() -> Iterator[Step]:
        for size, batch in plan.pages[:2]:
            yield Step(f"{size[0]}x{size[1]}, batch {batch}", partial(page, size, batch))
        for arch in plan.small_archs:
            yield Step(f"{arch} at {plan.small} px", partial(small, arch))
        for size, batch in plan.pages[2:]:
            yield Step(f"{size[0]}x{size[1]}, batch {batch}", partial(page, size, batch))

    def map_steps() -> Iterator[Step]:
        yield Step("LPIPS", lambda: uses().check_lpips())
        yield Step("an exported program", lambda: uses().check_exported())
        every = [("classifier", method) for method in maps.WITH_CLASSIFIER]
        every += [("GAP", method) for method in maps.WITH_GAP]
        for head, method in plan.maps or every:
            yield Step(f"{method} of the {head} head", partial(one_map, head, method))

    def speed_steps() -> Iterator[Step]:
        def step(name: str, *arguments: object, of=bench, **options: object) -> Step:
            shown = [getattr(x, "name", x) for x in (*arguments, *options.values())]
            return Step(
                " ".join(map(str, [name, *shown])),
                lambda: getattr(of(), name)(*arguments, **options),
            )

        yield step("ceilings")
        largest, *others = plan.forward_batches
        first, *modes = plan.timed
        for mode in plan.timed[:2]:
            yield step("forward", largest, mode)
        for mode in (first, *modes):
            for classes in (1, plan.several):
                yield step("cam", "grad_cam", classes, mode)
        for mode in (first, *modes):
            yield step("lpips", mode, of=uses)
        yield step("attribution", "saliency", first, of=uses)
        yield step("attribution", "lrp", first, of=uses, composite="epsilon_plus")
        yield step("prepared", first, of=uses)
        for mode in plan.timed:
            yield step("training", mode)
            yield step("sparsity", mode)
        for mode in plan.timed[2:]:
            yield step("forward", largest, mode)
        for batch in others:
            for mode in plan.timed:
                yield step("forward", batch, mode)
        for method in plan.slow_cams:
            for mode in plan.timed:
                yield step("cam", method, 1, mode)

    def profile(mode: Mode) -> Rows:
        return uses().profile(mode)

    limits = {name: share * seconds for name, share in SHARES.items()}
    name = "tiny" if plan is TINY else "full"
    children = partial(determinism.measure, name, limits["determinism"])
    steps = {
        "parity": parity_steps(),
        "speed": speed_steps(),
        "maps": map_steps(),
        "profile": iter([Step(mode.name, partial(profile, mode)) for mode in plan.timed[:2]]),
        "determinism": iter([Step("children", children)]),
        "memory": iter([Step("peaks", lambda: bench().memory())]),
    }
    return [Section(name, limits[name], found) for name, found in steps.items()]


def _named(network: str, rows) -> Rows:
    return [{"network": network, **row.to_json()} for row in rows]
