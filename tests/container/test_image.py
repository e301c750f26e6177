"""What is in the image, and what it says of itself."""

import re

from app import __version__
from tests.container.engine import IMAGE, inspect, run_in_image

MOST_BYTES = 350_000_000


def test_image_is_small() -> None:
    assert inspect(IMAGE)["Size"] <= MOST_BYTES


def test_user_is_a_number_that_is_not_root() -> None:
    """Kubernetes needs a numeric user to verify that it is not root."""
    user = inspect(IMAGE)["Config"]["User"]
    assert re.fullmatch("[1-9][0-9]*:[1-9][0-9]*", user)


def test_image_says_what_it_is_and_how_it_runs() -> None:
    config = inspect(IMAGE)["Config"]
    assert config["Entrypoint"] == ["ext-classify"]
    assert config["Cmd"] == ["serve"]
    assert config["StopSignal"] in {"SIGTERM", "15"}
    assert "8000/tcp" in config["ExposedPorts"]
    assert "EXT_CLASSIFY_HOST=0.0.0.0" in config["Env"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert re.fullmatch("[0-9a-f]{40}", labels["org.opencontainers.image.revision"])
    assert {"title", "description", "licenses"} <= {label.rpartition(".")[2] for label in labels}


def test_nothing_is_there_that_serving_does_not_need() -> None:
    found = run_in_image(
        "for program in gcc cc ld make git pip pip3 apt-get curl wget; do command -v $program; done;"
        "cd /opt/ext-classify/lib/python3*/site-packages;"
        "ls -d tensorflow keras h5py duckdb fakesnow pip setuptools pytest tests app/tests 2> /dev/null;"
        "find . -type d -name tests; true"
    )
    assert set(found.split()) <= {"/usr/bin/apt-get"}  # the base's own


def test_no_secret_and_no_leaving_of_the_build_is_there() -> None:
    patterns = ("*.pem", "*.key", "id_rsa*", "id_ed*", ".git", ".env", ".netrc", "pip.conf", "*.whl", "*.deb")
    named = " -o ".join(f"-name '{pattern}'" for pattern in patterns)
    elsewhere = "! -path '/usr/share/ca-certificates/*' ! -path '/etc/ssl/certs/*'"
    left = "/tmp /run /var/lib/apt/lists /var/cache/apt /build /opt/wheel"  # noqa: S108
    found = run_in_image(
        f"(find / -xdev \\( {named} \\) {elsewhere}; find {left} -type f) 2> /dev/null; true"
    ).split()
    assert [path for path in found if not path.endswith(("/cacert.pem", "/ssl/cert.pem"))] == []


def test_bytecode_is_good_whatever_time_files_have() -> None:
    """Or each start would compile what it imports (PEP 552: the second word of a .pyc is 1 then)."""
    program = (
        "import json, numpy, app.main; paths = [m.__cached__ for m in (json, numpy, app.main)];"
        "print([int.from_bytes(open(path, 'rb').read(8)[4:], 'little') for path in paths])"
    )
    assert run_in_image(f'python3 -c "{program}"').strip() == "[1, 1, 1]"


def test_no_program_makes_root_of_its_caller() -> None:
    assert run_in_image("find / -xdev -perm /6000 -type f 2> /dev/null; true") == ""


def test_network_inside_is_whole() -> None:
    assert re.match("steel_defects [0-9a-f]{12}: Crazing, ", run_in_image("ext-classify verify"))
