"""`make wheel`: a wheel of the packages and the native parts into dist/."""

from . import layout, native, product
from .cache import Cache
from .progress import run, say, step


def build_wheel() -> None:
    """Build the wheel with the environment's own build backend, so that nothing is fetched.

    Raises CommandError.
    """
    product.environment()
    with native.host_workspace(Cache()) as target, step("Wheel: build into dist/"):
        run(
            [
                *(layout.VENV_PYTHON, "-m", "pip", "wheel", "--disable-pip-version-check"),
                *("--no-deps", "--no-build-isolation", "--wheel-dir", layout.DIST, "."),
            ],
            log=layout.LOGS / "wheel.log",
            cwd=layout.CHECKOUT,
            env={"CARGO_TARGET_DIR": str(target)},
        )
    for wheel in sorted(layout.DIST.glob("*.whl")):
        say(f"{wheel.relative_to(layout.CHECKOUT)}: {wheel.stat().st_size / 2**10:.0f} KiB")
