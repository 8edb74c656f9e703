"""Bad input is one line and exit code 2, and nothing of the user is changed."""

import os
import re

import pytest

from experiments import vae
from skullgen.run import config as command
from skullgen.run import workdir
from tests.faults import bad_configs, bad_files

CASES = [*bad_files.CASES, *bad_configs.CASES]


def _tree(folder):
    """Every name under a folder, with what a file or a link holds."""
    contents = {}
    for place, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = os.path.join(place, name)
            contents[path] = None
            if os.path.islink(path):
                contents[path] = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    contents[path] = hash(file.read())
    return contents


def _config():
    config = vae.get_config("smoke")
    config.stages, config.workers = ("ingest",), 1
    return config


@pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy's would be lines of their own
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_is_one_line_and_changes_nothing(case, tmp_path, capsys):
    config = _config()
    case.make(tmp_path, config)
    before = _tree(tmp_path)
    with pytest.raises(Exception) as error:
        workdir.run(config, tmp_path / "run")
    assert "Traceback" not in capsys.readouterr().err
    assert command.report(error.value) == 2, error.value
    printed = capsys.readouterr().err
    assert re.fullmatch(f"error: (?:{case.line})\n", printed), printed
    assert printed[:-1].isprintable()
    assert before.items() <= _tree(tmp_path).items()


@pytest.mark.parametrize("make", bad_files.GOOD)
def test_what_the_cases_spoil_is_good_before(make, tmp_path):
    """Else a case could be refused for something else than its name says."""
    config = _config()
    make(tmp_path, config)
    workdir.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "real.zarr").is_dir()
