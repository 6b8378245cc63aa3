"""The baseline: stock Flower's own commands on loopback with TLS, as its documentation starts them."""

import json
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from offsite.emulator.durable import private_folder
from offsite.emulator.engines.flower.children import Child, environment, executable
from offsite.emulator.engines.flower.loopback_tls import HOST, LoopbackTls, make_loopback_tls

APP = Path(__file__).parent / "stock_app"
RUN_S = 1500.0


def measure(work: Path, megabytes: int, rounds: int) -> dict[str, float]:
    """One run of the app; what the ServerApp says, with the peak of the SuperLink."""
    private_folder(work)
    tls, out = make_loopback_tls(work, time.time()), work / "found.json"
    shutil.copytree(APP, work / "app")
    with ExitStack() as children:
        superlink = children.enter_context(Child(work / "superlink", lambda p: _superlink(p, tls)))
        superlink.wait_until_it_listens()
        address = f"{HOST}:{superlink.port}"
        for name in ("one", "two"):
            children.enter_context(
                Child(work / f"supernode-{name}", lambda p: _supernode(p, address, tls))
            )
        _run(work, address, tls, f"megabytes={megabytes} rounds={rounds} out='{out}'")
        until = time.monotonic() + RUN_S
        while not out.exists() and time.monotonic() < until:
            time.sleep(0.2)
        found = json.loads(out.read_text())
        linked_mb = _peak_mb(superlink.pid)
    return {
        "seconds_per_round": found["seconds_per_round"],
        "peak_mb": round(found["peak_mb"] + linked_mb, 1),
        "server_app_mb": found["peak_mb"],
        "superlink_mb": linked_mb,
    }


def _superlink(port: int, tls: LoopbackTls) -> list[str]:
    return [
        "flower-superlink",
        *("--host", HOST, "--port", str(port)),
        *("--ssl-ca-certfile", str(tls.root)),
        *("--ssl-certfile", str(tls.certificate)),
        *("--ssl-keyfile", str(tls.key)),
        "--disable-runtime-dependency-installation",
    ]


def _supernode(port: int, address: str, tls: LoopbackTls) -> list[str]:
    connection = ("--superlink", address, "--root-certificates", str(tls.root))
    return ["flower-supernode", *connection, "--host", HOST, "--port", str(port)]


def _run(work: Path, address: str, tls: LoopbackTls, config: str) -> None:
    home = work / "superlink" / "home"
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
        f'address = "{address}"\nroot-certificates = "{tls.root}"\n'
    )
    subprocess.run(
        [executable("flwr"), "run", str(work / "app"), "here", "--run-config", config],
        env=environment(home),
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=300,
    )


def _peak_mb(pid: int | None) -> float:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return round(kilobytes * 1024 / 1e6, 1)
