import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from macelib.erasure.export import check_folder
from macelib.errors import MaceError, need
from macelib.files import (
    atomic,
    cache_folder,
    data_folder,
    hash_tensors,
    hash_text,
    into_marks,
    read_checked,
    save_tensors,
    write_checked,
    write_text,
)


def test_atomic_writes_all_or_nothing(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with atomic(target) as temporary:
        temporary.write_text("one")
        assert temporary.suffix == ".txt" and not target.exists()
    with pytest.raises(KeyError), atomic(target) as temporary:
        temporary.write_text("tw")
        raise KeyError
    assert target.read_text() == "one" and list(target.parent.iterdir()) == [target]
    with pytest.raises(MaceError, match="could not be written"), atomic(target / "below" / "b.txt"):
        pass


@pytest.mark.parametrize("path", ["", ".", "..", "/", "./", "../.."])
@pytest.mark.parametrize(
    "write", [lambda p: write_text(p, "x"), lambda p: save_tensors(p, {"x": torch.ones(2)}), check_folder]
)
def test_a_folder_that_one_stands_in_is_never_written_over(tmp_path, monkeypatch, path, write):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "kept.txt").write_text("kept")
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(MaceError, match=r"has no name of its own|is a folder, and a file is written"):
        write(path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == ["a", "a/b", "a/kept.txt"]


def test_a_file_is_not_written_in_a_folder_s_place(tmp_path):
    with pytest.raises(MaceError, match=r"is a folder, and a file is written: give one in it, such as .*out"):
        save_tensors(tmp_path, {"x": torch.ones(2)})
    assert not list(tmp_path.iterdir()) and not list(tmp_path.parent.glob(f".{tmp_path.name}.*"))


def test_what_was_edited_or_damaged_is_not_gone_on_from(tmp_path):
    path = tmp_path / "rows.json"
    assert read_checked(path) is None
    write_checked(path, [{"é": 1.5, "b": None}])
    assert read_checked(path) == [{"é": 1.5, "b": None}]
    whole = path.read_text(encoding="utf-8")
    for text in (whole.replace("1.5", "1e9"), whole[:-9], "[]", "", '{"sha256": ' + "[" * 10**5, '{"values": []}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(MaceError, match=r"rows.json is damaged .*: delete it, and it is made anew"):
            read_checked(path)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_what_is_written_can_be_read_by_those_who_may(tmp_path):
    tensors, usual = {"x": torch.ones(2)}, os.umask(0o027)
    try:
        with atomic(tmp_path / "a.safetensors") as temporary:
            save_file(tensors, temporary)
        with atomic(tmp_path / "folder") as temporary:
            (temporary / "below").mkdir(parents=True)
            save_file(tensors, temporary / "below" / "b.safetensors")
    finally:
        os.umask(usual)
    written = [tmp_path / "a.safetensors", tmp_path / "folder" / "below" / "b.safetensors"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in written] == [0o640, 0o640]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "folder"]


def test_a_text_takes_the_place_of_the_last_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table -->\nold\n<!-- end of table -->\nz\n")
    for _ in range(2):
        assert into_marks(page, "table", "é | 1")
        assert page.read_text(encoding="utf-8") == "a\n<!-- table -->\né | 1\n<!-- end of table -->\nz\n"
    assert not into_marks(page, "figure", "x") and not into_marks(tmp_path / "none.md", "table", "x")
    assert "x" not in page.read_text(encoding="utf-8")


def test_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MACELIB_CACHE", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" and cache_folder().is_dir()
    monkeypatch.delenv("MACELIB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "macelib"
    assert (data_folder() / "protocols" / "objects.json").exists()
    monkeypatch.setenv("MACELIB_DATA", str(tmp_path))
    assert data_folder() == tmp_path


def test_hashes_see_names_shapes_dtypes_and_values():
    a = {"x": torch.arange(6.0), "y": torch.ones(2, dtype=torch.bfloat16)}
    different = [
        {"x": torch.arange(6.0), "z": a["y"]},
        {"x": torch.arange(6.0).reshape(2, 3), "y": a["y"]},
        {"x": torch.arange(6), "y": a["y"]},
        {"x": torch.arange(6.0) + 1e-6, "y": a["y"]},
    ]
    assert len({hash_tensors(t) for t in (a, *different)}) == 5
    assert hash_tensors(dict(reversed(a.items()))) == hash_tensors(a)
    assert hash_tensors({"x": torch.arange(12.0)[::2]}) == hash_tensors({"x": torch.arange(0.0, 12, 2)})
    assert hash_text("ab") != hash_text("a", "b") and hash_text(1, "a") == hash_text("1", "a")


def test_a_missing_package_names_its_extra():
    with pytest.raises(MaceError, match=r"macelib\[explicit\]"):
        need("no_such_module", "explicit")
