"""Manifests: a damaged, unfinished or foreign artefact is refused, and a failed build leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from tiny_artefacts import make_identity

from asymvpr_core.errors import ArtefactError
from asymvpr_core.manifest import (
    FORMAT_VERSIONS,
    MANIFEST_NAME,
    Manifest,
    check_pair,
    digest_of,
    new_folder,
    read_manifest,
    sha256_of,
    verify_files,
    write_atomically,
    write_manifest,
    write_text_atomically,
)
from asymvpr_core.work_folder import finish_folder, refuse_existing

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """A gallery folder of two files, one of them in a sub-folder."""
    with new_folder(tmp_path / "gallery") as folder:
        (folder / "data.bin").write_bytes(CONTENT)
        (folder / "images").mkdir()
        (folder / "images" / "0.jpg").write_bytes(b"picture")
        write_manifest(folder, "gallery", make_identity(), settings={"k": 1}, details={"map_frame": "map"})
    return tmp_path / "gallery"


def edit(folder: Path, **changes: object) -> None:
    """Change a manifest on purpose: its own checksum goes along."""
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({**content, "manifest_sha256": digest_of(content)}))


def test_round_trip(artefact: Path):
    manifest = read_manifest(artefact, "gallery")
    assert manifest.gallery_network == make_identity()
    assert manifest.settings == {"k": 1}
    assert manifest.details == {"map_frame": "map"}
    assert set(manifest.files) == {"data.bin", "images/0.jpg"}
    assert manifest.files["data.bin"].bytes == len(CONTENT)
    assert manifest.files["data.bin"].sha256 == hashlib.sha256(CONTENT).hexdigest()
    verify_files(artefact, manifest)


def test_checksum_of_a_file_larger_than_one_block(tmp_path: Path):
    data = CONTENT * 300  # 3 MB: more than one block of the streaming digest of Python 3.10
    (tmp_path / "large").write_bytes(data)
    assert sha256_of(tmp_path / "large") == hashlib.sha256(data).hexdigest()


def test_a_flipped_bit_is_found_wherever_it_is(artefact: Path):
    manifest = read_manifest(artefact, "gallery")
    for position in (0, len(CONTENT) // 2, len(CONTENT) - 1):
        damaged = bytearray(CONTENT)
        damaged[position] ^= 1
        (artefact / "data.bin").write_bytes(damaged)
        with pytest.raises(ArtefactError, match=r"data\.bin is damaged.*asymvpr gallery build"):
            verify_files(artefact, manifest)


def test_a_truncated_file_is_found(artefact: Path):
    (artefact / "data.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(ArtefactError, match=f"has {len(CONTENT) - 1} bytes; expected {len(CONTENT)}"):
        verify_files(artefact, read_manifest(artefact, "gallery"))


def test_a_file_that_may_not_be_read_is_one_clear_line(artefact: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("asymvpr_core.manifest.sha256_of", refuse)  # root may read everything
    with pytest.raises(ArtefactError, match=r"data\.bin cannot be read: Permission denied; check its permissions"):
        verify_files(artefact, read_manifest(artefact, "gallery"))


def test_a_missing_file_is_named(artefact: Path):
    (artefact / "images" / "0.jpg").unlink()
    with pytest.raises(ArtefactError, match=r"images/0\.jpg is missing"):
        verify_files(artefact, read_manifest(artefact, "gallery"))


def test_only_the_named_files_are_checked(artefact: Path):
    (artefact / "data.bin").unlink()
    manifest = read_manifest(artefact, "gallery")
    verify_files(artefact, manifest, ["images/0.jpg"])
    with pytest.raises(ArtefactError, match="does not list 'other'"):
        verify_files(artefact, manifest, ["other"])


def test_no_folder(tmp_path: Path):
    with pytest.raises(ArtefactError, match="there is no model folder .*absent; build it with 'asymvpr export'"):
        read_manifest(tmp_path / "absent", "model")


def test_a_folder_without_manifest_is_unfinished(tmp_path: Path):
    with pytest.raises(ArtefactError, match="no finished run; build it with 'asymvpr train'"):
        read_manifest(tmp_path, "run")


def test_another_kind_is_refused(artefact: Path):
    with pytest.raises(ArtefactError, match="is a gallery; expected a model"):
        read_manifest(artefact, "model")


def test_a_newer_format_is_refused_by_its_number(artefact: Path):
    newest = FORMAT_VERSIONS["gallery"]
    edit(artefact, format_version=newest + 1, something_of_the_future=1)
    with pytest.raises(ArtefactError, match=f"format version {newest + 1}; expected at most {newest}"):
        read_manifest(artefact, "gallery")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"kind": "gallery"}', '"gallery"'])
def test_a_damaged_manifest_is_refused(artefact: Path, text: str):
    (artefact / MANIFEST_NAME).write_text(text)
    with pytest.raises(ArtefactError, match=r"manifest\.json is damaged"):
        read_manifest(artefact, "gallery")


def test_every_flipped_byte_of_a_manifest_is_found(artefact: Path):
    path = artefact / MANIFEST_NAME
    whole = path.read_bytes()
    silent = []
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            if read_manifest(artefact, "gallery") != Manifest.model_validate_json(whole):
                silent.append(position)
        except ArtefactError:
            continue
    assert silent == []


def test_the_checksum_of_a_manifest_is_that_of_its_other_fields(artefact: Path):
    content = json.loads((artefact / MANIFEST_NAME).read_text())
    own = content.pop("manifest_sha256")
    assert own == hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_a_path_that_is_not_utf8_is_refused(tmp_path: Path):
    path = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(ArtefactError, match="is not UTF-8; rename"):
        read_manifest(path, "gallery")
    with pytest.raises(ArtefactError, match="is not UTF-8"), new_folder(path):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_unknown_keys_in_a_manifest_are_refused(artefact: Path):
    edit(artefact, extra=1)
    with pytest.raises(ArtefactError, match="damaged: 'extra'"):
        read_manifest(artefact, "gallery")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "images/../../secret", ""])
def test_a_path_outside_the_folder_is_refused(artefact: Path, name: str):
    edit(artefact, files={name: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(ArtefactError, match="a path outside its folder"):
        read_manifest(artefact, "gallery")


def test_pair_id_depends_on_every_part_of_the_identity():
    identity = make_identity()
    others = [
        identity.model_copy(update={"name": "other"}),
        identity.model_copy(update={"weights_sha256": "1" * 64}),
        identity.model_copy(update={"preprocess": identity.preprocess | {"width": 1}}),
        identity.model_copy(update={"projection_sha256": "0" * 64}),
        identity.model_copy(update={"dimension": 3}),
    ]
    assert len({identity.pair_id, *(other.pair_id for other in others)}) == 6


def test_check_pair_names_both(artefact: Path, tmp_path: Path):
    other = make_identity("another_network")
    with new_folder(tmp_path / "model") as folder:
        write_manifest(folder, "model", other)
    gallery, model = read_manifest(artefact, "gallery"), read_manifest(tmp_path / "model", "model")
    with pytest.raises(ArtefactError) as caught:
        check_pair(gallery, model, artefact, tmp_path / "model")
    assert make_identity().pair_id in str(caught.value)
    assert other.pair_id in str(caught.value)
    check_pair(gallery, model.model_copy(update={"gallery_network": make_identity()}), artefact, tmp_path / "model")


def test_a_failed_block_leaves_nothing(tmp_path: Path):
    with pytest.raises(RuntimeError, match="in the middle"), new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "half").write_bytes(b"x")
        raise RuntimeError("in the middle")
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_interrupted_block_leaves_nothing(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as folder:
        (folder / "half").write_bytes(b"x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(ArtefactError, match="out cannot be written: No space left on device"), new_folder(tmp_path / "out") as folder:
        (folder / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_the_final_name_before_the_end(tmp_path: Path):
    with new_folder(tmp_path / "out") as folder:
        assert not (tmp_path / "out").exists()
        assert folder.is_relative_to(tmp_path)  # the same file system, so that the rename is atomic
    assert (tmp_path / "out").is_dir()
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_existing_results_are_never_overwritten(artefact: Path):
    before = (artefact / MANIFEST_NAME).read_bytes()
    with pytest.raises(ArtefactError, match="exists already"), new_folder(artefact):
        pytest.fail("the block must not run")
    assert (artefact / MANIFEST_NAME).read_bytes() == before


def test_an_empty_folder_may_become_the_result(tmp_path: Path):
    (tmp_path / "out").mkdir()
    refuse_existing(tmp_path / "out")
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_bytes(b"x")
    assert (tmp_path / "out" / "file").read_bytes() == b"x"


def test_a_file_in_the_way_is_refused(tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ArtefactError, match="exists already"):
        refuse_existing(tmp_path / "out")


def test_a_parent_that_is_a_file_is_one_clear_line(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtefactError, match="cannot be written"), new_folder(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")


def test_finish_folder_renames_a_whole_tree(tmp_path: Path):
    (tmp_path / "staging" / "inner").mkdir(parents=True)
    (tmp_path / "staging" / "inner" / "file").write_bytes(b"x")
    finish_folder(tmp_path / "staging", tmp_path / "final")
    assert (tmp_path / "final" / "inner" / "file").read_bytes() == b"x"
    assert not (tmp_path / "staging").exists()


def test_text_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "text"
    write_text_atomically(path, "old")
    write_text_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_text_alone(tmp_path: Path):
    path = tmp_path / "text"
    write_text_atomically(path, "old")

    def fail(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
