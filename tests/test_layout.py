"""Two rules of the layout that no tool checks."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_root_folders_are_source_roots_not_packages() -> None:
    """`import kernels` from a checkout must find Hugging Face's package, not our folder."""
    roles = ["coordinator", "edge_client", "emulator", "kernels", "protos", "secure", "simulation"]
    assert not [role for role in roles if (ROOT / role / "__init__.py").exists()]


def test_namespace_has_no_init() -> None:
    """One `offsite/__init__.py` would hide every other portion of the namespace."""
    assert not list(ROOT.glob("*/offsite/__init__.py"))


def test_no_code_from_data() -> None:
    """No pickle, no `torch.load`, no remote code anywhere in what is shipped."""
    banned = ("import pickle", "torch.load(", "trust_remote_code=True", "allow_pickle=True")
    found = [
        (path.name, word)
        for path in ROOT.glob("*/offsite/**/*.py")
        for word in banned
        if word in path.read_text(encoding="utf-8")
    ]
    assert not found
