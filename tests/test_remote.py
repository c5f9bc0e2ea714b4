"""Data sets and stores in buckets, on a real S3 server of this machine: the same as in folders."""

import doctest
import re
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import zarr
from object_store import BUCKET, at, full_after, some
from pyarrow import parquet
from streaming_jobs import means_job, on_device
from test_archives import image, tar

import flaxvgg.commands.streaming
from flaxvgg.cam.photos import plan_maps
from flaxvgg.files import addresses, remote, remote_locking
from flaxvgg.files.addresses import named
from flaxvgg.files.locking import LockedError
from flaxvgg.files.remote import GoneError, RemoteError
from flaxvgg.images.fingerprint import content_of_photo
from flaxvgg.images.labelled import read_labelled
from flaxvgg.images.loading import ImageError, open_image
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.streaming import (
    Store,
    StoreError,
    features_job,
    find_source,
    maps_job,
    sparsity_job,
    stream,
)
from flaxvgg.streaming.places import Bucket
from helpers import TINY_GAP, run_flaxvgg, tiny_vgg

RECIPE = PREPROCESSING["torchvision"]
COUNT, UNIT = 40, 32


@pytest.fixture(scope="module")
def job():
    return on_device(means_job())


@pytest.fixture(scope="module")
def folder(server, tmp_path_factory):
    """Data sets of every kind, in a folder and in the bucket under the same names."""
    root = tmp_path_factory.mktemp("sets")
    photos = root / "photos"
    for i in range(COUNT):
        path = photos / ("cats", "dogs")[i % 2] / f"ä {i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i))
    (photos / "cats" / ".hidden.png").write_bytes(image(0))
    (photos / "cats" / "notes.txt").write_text("none")
    names = [path.relative_to(root).as_posix() for path in sorted(photos.rglob("ä*.png"))]
    (root / "list.csv").write_text("\n".join(["image,label", *(f"{x},{len(x)}" for x in names)]))
    parquet.write_table(pyarrow.table({"image": names}), root / "list.parquet")
    members = {f"cats/{i}.jpg": image(i) for i in range(4)}
    classes = {f"cats/{i}.cls": b"%d" % (i % 3) for i in range(4)}
    tar(root / "s-000.tar", members | classes)
    tar(root / "s-001.tar", {f"cats/{i}.jpg": image(i) for i in range(4, 9)})
    tar(root / "one.tar.gz", members, "w:gz")
    zipped(root / "one.zip", members)
    for i in range(2):
        cells = [{"bytes": image(3 * i + k), "path": f"n{k}.png"} for k in range(3)]
        (root / "shards").mkdir(exist_ok=True)
        at_shard = root / "shards" / f"train-{i:05}-of-00002.parquet"
        table = pyarrow.table({"image": cells, "label": [0, 1, 1]})
        parquet.write_table(table, at_shard, row_group_size=2)
    with at(server.port):
        for path in filter(Path.is_file, root.rglob("*")):
            remote.write(f"{BUCKET_URL}/{path.relative_to(root).as_posix()}", path.read_bytes())
    return root


BUCKET_URL = f"s3://{BUCKET}/sets"


def test_addresses():
    assert doctest.testmod(addresses) == (0, 2)


def zipped(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


KINDS = ("photos", "photos/cats", "list.csv", "list.parquet", "s-000.tar", "s-{000..001}.tar")
KINDS += ("one.tar.gz", "one.zip", "shards", "shards/train-*.parquet", "photos/cats/ä 00.png")


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_is_the_one_of_the_folder(folder, proxy, kind):
    here, there = find_source(folder / kind), find_source(f"{BUCKET_URL}/{kind}")
    names = [named(x).removeprefix(f"{BUCKET_URL}/") for x in there.names]
    assert names == [x.removeprefix(f"{folder}/") for x in here.names]
    assert there.classes == here.classes
    assert (there.labels is None) == (here.labels is None)
    if here.labels is not None:
        np.testing.assert_array_equal(there.labels, here.labels)
    assert there.is_remote
    assert not here.is_remote
    for row in range(len(here)):
        expected, found = here.read(row, None, RECIPE), there.read(row, None, RECIPE)
        assert not found.problem
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert found.content == there.content(row) != expected.content


@pytest.mark.parametrize("kind", ["photos", "list.csv", "s-000.tar", "shards"])
def test_what_is_trained_on_is_that_of_the_folder(folder, proxy, kind):
    here, there = read_labelled(folder / kind), read_labelled(f"{BUCKET_URL}/{kind}")
    assert there.classes == here.classes
    np.testing.assert_array_equal(there.labels, here.labels)
    contents = [[content_of_photo(x) for x in found.paths] for found in (here, there)]
    assert contents[0] == contents[1]
    asked = len(proxy.requests)
    assert contents[1] == [content_of_photo(x) for x in there.paths]
    assert len(proxy.requests) == asked  # each is fetched once
    for a, b in zip(here.paths[:3], there.paths[:3], strict=True):
        assert str(a).endswith(str(b))
        np.testing.assert_array_equal(open_image(a), open_image(b))


def test_what_cannot_be_trained_on_is_said_in_a_line(folder, proxy):
    for kind, says in {
        "photos/cats": "images in no folder: put those of each class into one",
        "nothing": "no image below this address",
        "x.array_record": "ArrayRecord files are read from this machine",
        "list.parquet": "no column `labels` in it",
        "no.csv": "no such object: check the address",
    }.items():
        with pytest.raises(ValueError, match=says) as error:
            read_labelled(f"{BUCKET_URL}/{kind}")
        assert str(error.value).startswith(f"{BUCKET_URL}/{kind}: ")
    table = f"{BUCKET_URL}/lists.csv"
    remote.write(table, b"image,label\nphotos/cats/\xc3\xa4 00.png,a\nno.png,b")
    with pytest.raises(ImageError, match=r"^no\.png: no such object: check the address"):
        open_image(read_labelled(table).paths[1])
    with pytest.raises(ValueError, match="they are b"):
        read_labelled(f"{BUCKET_URL}/photos", ["b"])


def test_a_table_of_this_machine_lists_addresses(folder, proxy, tmp_path):
    lines = ["image", f"{BUCKET_URL}/photos/cats/ä 00.png", "here.png", f"{BUCKET_URL}/no.png"]
    lines.append("http://127.0.0.1/keys.png")  # no address, in a table
    (tmp_path / "list.csv").write_text("\n".join(lines))
    (tmp_path / "here.png").write_bytes(image(1))
    source = find_source(tmp_path / "list.csv")
    for row in (0, 1):
        pixels = source.read(row, None, RECIPE).pixels
        expected = find_source(folder / "photos").read(row * (COUNT // 2), None, RECIPE).pixels
        np.testing.assert_array_equal(pixels, expected)
    assert source.read(2, None, RECIPE).problem == "no such object: check the address"
    assert source.content(2) == 0
    assert source.read(3, None, RECIPE).problem == "no such file: check the path"


def test_only_what_is_needed_is_fetched(proxy, tmp_path):
    noise = np.random.default_rng(0).bytes(200_000)  # behind the pixels, where no decoder looks
    members = {f"{i}.png": image(i) + noise for i in range(5)}
    tar(tmp_path / "big.tar", members)
    zipped(tmp_path / "big.zip", members)
    cells = [{"bytes": data, "path": name} for name, data in members.items()]
    parquet.write_table(pyarrow.table({"image": cells}), tmp_path / "big.parquet", row_group_size=1)
    for kind in ("tar", "zip", "parquet"):
        url = f"s3://{BUCKET}/big/big.{kind}"
        remote.write(url, (tmp_path / f"big.{kind}").read_bytes())
        proxy.requests.clear()
        source = find_source(url)
        looked = sum(map(length, proxy.requests))
        assert looked < 200_000, f"{looked} bytes of a {kind} to know what is in it"
        proxy.requests.clear()
        assert not source.read(3, None, RECIPE).problem
        # Of Parquet also what stands at its end.
        fetched = sum(map(length, proxy.requests))
        assert fetched < 300_000, f"{fetched} bytes of a {kind} for one image"
        assert sum(map(bool, map(length, proxy.requests))) <= {"parquet": 4}.get(kind, 1)


def length(request: tuple[str, str, str]) -> int:
    """The bytes that a request asks for; the whole of an object would be too many to be counted."""
    method, _, wanted = request
    bounds = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
    return int(bounds[2]) - int(bounds[1]) + 1 if bounds else 10**9 * (method == "GET")


def run(job, source, out, steps: int = 1000):
    """Stream, with one image at a time on each of two devices, for so many steps."""
    asked = iter(range(1000))
    return stream(
        job, source, out, size=(32, 32), batch=1, stop=lambda: next(asked) >= steps, note=print
    )


def objects(url: str) -> dict[str, remote.Version]:
    return {name: found.version for name, found in remote.objects_below(url)}


def same_arrays(here: Path, there: str) -> None:
    """All arrays, and what a store notes of itself, but for what is in the images."""
    a, b = zarr.open_group(here), zarr.open_group(remote.zarr_store(there))
    names = [sorted(name for name, _ in group.members(max_depth=None)) for group in (a, b)]
    assert names[0] == names[1]
    for name in names[0]:
        if isinstance(a[name], zarr.Array) and name != "content":
            np.testing.assert_array_equal(a[name][...], b[name][...], err_msg=name)
    assert dict(a.attrs) == dict(b.attrs)


def test_a_store_in_a_bucket_is_the_one_of_a_folder(job, folder, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(Bucket, "save_every", 0.0)
    url, other = f"s3://{BUCKET}/stores/m.zarr", f"s3://{BUCKET}/stores/n.zarr"
    run(job, find_source(folder / "photos"), tmp_path / "m.zarr")
    source = find_source(f"{BUCKET_URL}/photos")
    proxy.fault = some(0, 0.1, "503 SlowDown", "cut")
    whole = run(job, source, url)
    assert not whole.left + len(whole.problems)
    assert proxy.faults
    proxy.fault = lambda *_: None
    same_arrays(tmp_path / "m.zarr", url)
    # The unit that is whole is there, and of the other what was done: no image is done twice.
    first = run(job, source, other, UNIT // 2 + 3)
    assert 0 < first.left < COUNT - UNIT
    assert any(name.startswith("status/unfinished/1-") for name in objects(other))
    assert run(job, source, other).now == first.left
    assert objects(other) == objects(url)
    assert run(job, source, other).now == 0
    # Nothing lies beside it: no lock, and no group of Zarr.
    beside = {name.partition("/")[0] for name in objects(f"s3://{BUCKET}/stores")}
    assert beside == {"m.zarr", "n.zarr"}
    assert "zarr.json" not in objects(f"s3://{BUCKET}")
    assert Store(url).row("mean", 3).shape == (3,)
    # Without its status a unit is none, whatever else there is of it.
    remote.remove(f"{other}/status/c/0")
    assert Store(other).left() == UNIT
    assert run(job, source, other).now == UNIT
    assert objects(other) == objects(url)


def test_what_has_changed_is_not_mixed_in(job, folder, proxy):
    root, out = f"s3://{BUCKET}/changing", f"s3://{BUCKET}/stores/c.zarr"
    for i in range(COUNT):
        remote.write(f"{root}/{i:02}.png", image(i))
    source = find_source(root)
    assert run(job, source, out, UNIT // 2 + 2).left
    remote.write(f"{root}/03.png", image(99))
    with pytest.raises(StoreError, match=r"1 of those that are done have changed since \(03.png\)"):
        run(job, find_source(root), out)
    remote.write(f"{root}/03.png", image(3))  # the same bytes again are the same image
    remote.write(f"{root}/39.png", image(98))  # while the run knows another one
    (problem,) = run(job, source, out).problems.items()
    assert problem == ("39.png", "it has changed since the run began: run it again")
    assert not run(job, find_source(root), out).problems
    remote.write(f"{root}/new.png", image(1))
    with pytest.raises(StoreError, match=r"is of other images: 1 added \(new.png\)"):
        run(job, find_source(root), out)
    # A shard that is replaced changes all that is in it.
    shard, of_shard = f"s3://{BUCKET}/changing.tar", f"s3://{BUCKET}/stores/t.zarr"
    data = (folder / "s-001.tar").read_bytes()
    remote.write(shard, data)
    run(job, find_source(shard), of_shard)
    remote.write(shard, data + bytes(10240))
    with pytest.raises(StoreError, match=r"5 of those that are done have changed since \(cats/4"):
        run(job, find_source(shard), of_shard)


def test_one_run_at_a_time(job, folder, proxy, monkeypatch):
    source, out = find_source(f"{BUCKET_URL}/photos"), f"s3://{BUCKET}/stores/l.zarr"
    lock = f"s3://{BUCKET}/stores/.l.zarr.lock"
    with Store.lock(out):
        with pytest.raises(
            LockedError, match=r"written by another run \(process \d+ on .*heard of"
        ):
            run(job, source, out)
        theirs = remote.Object(lock).fetch()[0]
    # A process of this machine that is gone has left its lock; one elsewhere may still live.
    gone = theirs.replace(b'"began": "', b'"began": "9')
    elsewhere = gone.replace(b'"machine": "', b'"machine": "elsewhere ')
    for left, is_free in ((gone, True), (elsewhere, False)):
        remote.write(lock, left)
        if is_free:
            assert not run(job, source, out).left
        else:
            with pytest.raises(LockedError, match="killed elsewhere ends after 60 s"):
                run(job, source, out)
    monkeypatch.setattr(remote_locking, "_EXPIRES", -1.0)
    assert run(job, source, out).now == 0
    monkeypatch.undo()
    # Who has lost it stops, though it was only away.
    with Store.lock(out):
        remote.write(lock, elsewhere)
        monkeypatch.setattr(remote_locking, "_EXPIRES", -1.0)
        with pytest.raises(LockedError, match="was taken over by another run"):
            Store(out).save(0, 0, {})
    assert remote.Object(lock).fetch()[0] == elsewhere


def test_it_is_one_line_that_says_what_to_do(job, folder, server, proxy, monkeypatch, tmp_path):
    source, out = find_source(f"{BUCKET_URL}/photos"), f"s3://{BUCKET}/stores/e.zarr"

    def refused(says: str, kind: type[Exception], out=out, source=source, steps: int = 1000):
        with pytest.raises(kind) as error:
            run(job, source, out, steps)
        assert re.search(says, str(error.value))
        assert "\n" not in str(error.value)

    refused("s3://none: no such bucket: create it", RemoteError, out="s3://none/a.zarr")
    with pytest.raises(GoneError, match=f"{BUCKET_URL}/no.csv: no such object: check the address"):
        find_source(f"{BUCKET_URL}/no.csv")
    with pytest.raises(ValueError, match="no image below this address"):
        find_source(f"{BUCKET_URL}/nothing")
    with (
        at(server.port, key="other"),
        pytest.raises(RemoteError, match=r"denied .*check AWS_ACCESS"),
    ):
        find_source(f"{BUCKET_URL}/photos")
    with at(server.port, key="other"):
        refused("access is denied .403", RemoteError)
    # Whatever ends it in the middle, what was done by then is whole.
    monkeypatch.setitem(remote._RETRIES, "max_retries", 1)
    remote._made.cache_clear()
    full = "(507|403) QuotaExceeded.*what is in it is whole; make room, and rerun"
    for fault, says in (("507 QuotaExceeded", full), ("403 QuotaExceeded", full)):
        proxy.fault = lambda method, path, x=fault: x if "/corner/c/1" in path else None
        refused(says, StoreError)
        proxy.fault = lambda *_: None
        assert Store(out).left() <= COUNT - UNIT
    # One image that cannot be had ends it, and does not count as broken.
    proxy.fault = lambda method, path: "403 AccessDenied" if path.endswith("39.png") else None
    refused(r"39.png: access is denied \(403 AccessDenied\)", RemoteError)
    proxy.fault = lambda *_: None
    assert Store(out).left() <= COUNT - UNIT
    assert not Store(out).problems()
    monkeypatch.setitem(remote._FIRST, "max_retries", 1)
    with at(1):  # where nobody listens
        refused("no connection .*check the network, and AWS_ENDPOINT_URL", RemoteError)
    assert not run(job, source, out).left
    run(job, find_source(folder / "photos"), tmp_path / "e.zarr")
    same_arrays(tmp_path / "e.zarr", out)


@pytest.mark.slow
def test_servers_that_fail_and_come_back(folder, proxy, server, monkeypatch):
    model = tiny_vgg(TINY_GAP)
    plan = plan_maps(model, ("grad_cam",), "top2", None, "paper", (32, 32))
    jobs = {
        "features": features_job(model, ["pool2", "logits"]),
        "sparsity": sparsity_job(model, None),
        "cam": maps_job(model, plan),
    }
    place = f"s3://{BUCKET}/spoilt"
    for name, job in jobs.items():
        run(job, find_source(f"{BUCKET_URL}/photos"), f"{place}/whole/{name}.zarr")
    # A tenth of all requests fail, from the first one on.
    proxy.fault = some(1, 0.1, "503 SlowDown", "500 InternalError", "cut")
    for name, job in jobs.items():
        assert not run(job, find_source(f"{BUCKET_URL}/photos"), f"{place}/tenth/{name}.zarr").left
    assert proxy.faults > 20
    # The server dies in the middle of the first store, and is started again.
    begun = len(proxy.requests)
    down = threading.Thread(target=lambda: (server.kill(), time.sleep(1), server.start()))

    def crash(method: str, path: str) -> None:
        if len(proxy.requests) == begun + 100:
            down.start()

    proxy.fault = crash
    for name, job in jobs.items():
        assert not run(job, find_source(f"{BUCKET_URL}/photos"), f"{place}/down/{name}.zarr").left
    down.join()
    said = []
    # Nothing more fits after so many writes: what is whole is kept, and gone on with.
    monkeypatch.setitem(remote._RETRIES, "max_retries", 1)
    remote._made.cache_clear()
    for name, job in jobs.items():
        for most in range(12, 200, 12):
            proxy.fault = full_after(most)
            try:
                run(job, find_source(f"{BUCKET_URL}/photos"), f"{place}/full/{name}.zarr")
                break
            except (StoreError, RemoteError) as error:
                said.append(str(error))
    proxy.fault = lambda *_: None
    assert len(said) > len(jobs)
    assert all(re.search(r"no room \(507 QuotaExceeded\).*make room", line) for line in said)
    whole = objects(f"{place}/whole")
    assert len(whole) > 50
    for how in ("tenth", "down", "full"):
        assert objects(f"{place}/{how}") == whole, how


@pytest.mark.slow
def test_killed_at_any_moment():
    told = subprocess.run(
        [sys.executable, "-m", "tests.remote_trials", "--count", "6"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert not told.returncode, told.stderr
    assert "killed 6 times" in told.stdout


def test_web_servers_are_read(folder, server, proxy):
    at_web = f"http://127.0.0.1:{server._ports['filer.port']}/buckets/{BUCKET}/sets"
    for kind in ("list.csv", "s-{000..001}.tar", "one.zip", "shards/train-00000-of-00002.parquet"):
        here, there = find_source(folder / kind), find_source(f"{at_web}/{kind}")
        assert list(there.names) == list(here.names)
        np.testing.assert_array_equal(
            there.read(1, None, RECIPE).pixels, here.read(1, None, RECIPE).pixels
        )
    with pytest.raises(RemoteError, match="does not list its files: name them, list them"):
        find_source(f"{at_web}/photos")
    with pytest.raises(StoreError, match="a web server is read only"):
        run(on_device(means_job()), there, f"{at_web}/x.zarr")


@pytest.mark.slow
def test_commands(folder, proxy, monkeypatch):
    monkeypatch.setattr(
        flaxvgg.commands.streaming, "load_model", lambda weights, arch: tiny_vgg(TINY_GAP)
    )
    out, shard = f"s3://{BUCKET}/stores/cli.zarr", f"{BUCKET_URL}/s-001.tar"
    result = run_flaxvgg("features", shard, "--layers", "gap", "--size", "32x32", "--out", out)
    assert result.exit_code == 0
    assert re.search(rf"store +{out}", result.stdout)
    told = run_flaxvgg("info", out)
    assert told.exit_code == 0
    assert "features of vgg11" in told.stdout
    lines = "reference,image", "photos/cats/ä 00.png,photos/dogs/ä 01.png"
    remote.write(f"{BUCKET_URL}/pairs.csv", "\n".join(lines).encode())
    pairs = f"{BUCKET_URL}/pairs.csv", "--out", f"s3://{BUCKET}/stores/pairs.zarr"
    compared = run_flaxvgg("compare", *pairs, "--metric", "psnr")
    assert compared.exit_code == 0
    assert "1 done, 0 broken, 0 left" in compared.stdout


def test_commands_refuse_in_a_line(folder, proxy, monkeypatch, tmp_path):
    out, shard = f"s3://{BUCKET}/stores/cli.zarr", f"{BUCKET_URL}/s-001.tar"
    config = tmp_path / "train.toml"
    config.write_text(f'[data]\ntrain = "{folder / "photos"}"\n')
    for command, says in {
        ("features", shard): "behind an address goes into a store (--out NAME.zarr)",
        ("features", shard, "--out", f"s3://{BUCKET}/f.npz"): "a store alone: add .zarr",
        ("attribute", folder / "photos", "--out", f"s3://{BUCKET}/f"): ".zarr stores can be there",
        ("train", "--config", config, "--out", f"s3://{BUCKET}/sets"): "and is no run",
        ("sparsity", f"{BUCKET_URL}/nothing", "--out", out): "no image below this address",
    }.items():
        refused = run_flaxvgg(*command)
        assert refused.exit_code == 2
        assert says in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert not Path("s3:").exists()
    monkeypatch.setitem(sys.modules, "obstore", None)
    refused = run_flaxvgg("features", shard, "--out", out)
    assert "this needs obstore, which is not installed: pip install obstore" in refused.stderr
    assert "'flaxvgg[cloud]'" in refused.stderr
