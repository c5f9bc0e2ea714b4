"""What was found, as a table and as the experiment's page."""

from typing import Any


def table(found: dict[str, Any]) -> str:
    """How busy the devices are, by how much a host decodes beside what they take."""
    names = list(found["busy"])
    lines = [
        f"| cores / those that are needed | {' | '.join(names)} |",
        f"| ---: | {' | '.join('---:' for _ in names)} |",
    ]
    for i, spare in enumerate(found["spare"]):
        busy = (f"{found['busy'][name][i]:.1%}" for name in names)
        lines.append(f"| {spare:.2f} | {' | '.join(busy)} |")
    return "\n".join(lines)


def readme(found: dict[str, Any]) -> str:
    """The page."""
    order = found["order"]
    same = "are" if order["same_as_one_host"] else "ARE NOT"
    mean, longest = found["decoding"]["mean_ms"], found["decoding"]["longest_ms"]
    return f"""# Does the input of 256 hosts keep up?

```sh
python -m experiments.many_hosts     # a minute
```

**Which images.** The pipeline of `flaxvgg.training.data` itself, of each of {order["hosts"]} hosts
in turn: the parts of a batch, one behind the other, {same} the batch of one host,
for all {order["images"]:,} images of two epochs, and {order["twice_in_an_epoch"]} images come twice
in an epoch.

**Whether it keeps up.** A simulation of the threads, with times of decoding as measured here: a
photo of 500x375, cut and scaled to 224x224, takes {mean:.2f} ms of one core on average and
{longest:.2f} ms at most. A host has {found["own"]} images of a batch, and {found["needed"]} cores.
Where its devices take {found["step_ms"]:.1f} ms for them, which is {found["rate"]:,.0f} images a
second, these cores are just enough on average. All hosts wait for the last one in every step. How
busy the devices are:

{table(found)}

With some more cores than are needed on average, 256 hosts lose next to nothing to chance: each
decodes ahead, so that a batch that takes longer is made up for. One host at half the speed holds
all of them up: it has to be replaced, or every host given twice the cores.

**Only simulated:** no step of it ran on 256 hosts; storage and network are not in it.
"""
