"""What the cases name: a model that is fine, and a folder of things that are not."""

from pathlib import Path

from tests.support.bad_commands import (
    benchmark_options,
    models,
    other_commands,
    press_options,
    results_folders,
)
from tests.support.running import of_model


def make_places(bad: Path, model_folder: Path) -> dict[str, str]:
    """Fill the folder `bad`; what stands for `{tiny}` and `{bad}` of a case."""
    for module in (other_commands, press_options, benchmark_options, results_folders):
        module.fill(bad)
    models.fill(bad, model_folder)
    return {"tiny": " ".join([*of_model(model_folder), "model.device=cpu"]), "bad": str(bad)}


def typed(case: str, **places: str) -> list[str]:
    """The arguments of a case as a shell would hand them over."""
    for name, value in places.items():
        case = case.replace(f"{{{name}}}", value)
    return case.split(" ")


def files(folder: Path) -> dict[str, int]:
    """Every file below a folder, with its size."""
    return {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }
