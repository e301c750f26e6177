"""ext-classify register, unregister and upload: set up Snowflake."""

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.cli.command_line import Add, add_json, read_api_key
from app.cli.sql import LOCAL_DATABASE, LOCAL_PORT, add_connection, local_service, open_session
from app.cli.terminal import open_screen
from app.client import ClientError, require_route
from app.errors import Incomplete, UsageError
from app.names import directory_of, quote_identifier
from app.provisioning.ddl import VARIABLES
from app.provisioning.gateway import refuse_unusable
from app.provisioning.register import PROVIDERS, Registration, register, unregister, verify
from app.provisioning.upload import UploadIncomplete, find_files, is_encrypted_by_clients, upload
from app.provisioning.user_session import UserSession
from model.defaults import SAMPLES
from model.errors import CorruptImage, ImageTooLarge, UnsupportedFormat

DEFAULT_INTEGRATION = "ext_classify_api"
DEFAULT_API_PROVIDER = "aws_api_gateway"
# Snowflake's own requests may take longer; this only finds out whether there is a gateway.
_ANSWER_SECONDS = 10.0
# The codes of rows whose image is at fault, not the function.
_IMAGE_FAULTS = {kind.code for kind in (UnsupportedFormat, CorruptImage, ImageTooLarge)}

# Flags whose names are not those of the SQL variables that they set.
_FLAGS = {
    "aws_role_arn": "--role-arn",
    "azure_tenant_id": "--tenant-id",
    "azure_application_id": "--application-id",
    "google_audience": "--audience",
    "api_key": "--api-key-file",
}
# Required and optional variables of each provider's integration.
_IDENTITY = {
    "aws": ["aws_role_arn"],
    "azure": ["azure_tenant_id", "azure_application_id"],
    "google": ["google_audience"],
    "spcs": [],
}
_OPTIONAL = {"aws": ["api_provider", "api_key"], "azure": ["api_key"], "google": [], "spcs": []}
_GRANTS = ["caller_role", "service_role", "warehouse"]
_COMMON = ["schema", "stage", "function", "max_batch_rows", "owner_role", *_GRANTS]


def register_function(
    connection: str | None,
    local: bool,
    port: int,
    dry_run: bool,
    force: bool,
    verifies: bool,
    sample: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    if local and not dry_run and given["url"] is None and given["provider"] != "spcs":
        given["url"] = f"{local_service(port)}/classify"
    registration = read_flags(given, _defaults(local))
    _check_verification(registration, sample, verifies=verifies)
    if dry_run:
        for statement in registration.statements():
            print(_as_line("statement", statement) if as_json else f"{statement};\n")
        return
    if not force:
        _require_service(registration)
    with open_session(connection, local, port) as user_session:
        for line in register(user_session, registration):
            # Flushed: if the command fails later, the grants that a replacement dropped are on record.
            print(_as_line("done", line) if as_json else line, flush=True)
        if "owner_role" in registration.variables:
            _print_owner_steps(registration, local, port, as_json=as_json)
            return
        if verifies:
            _print_verification(user_session, registration, sample, as_json=as_json)
    if not as_json:
        _print_next_steps(registration, local, port)


def _check_verification(registration: Registration, sample: Path | None, *, verifies: bool) -> None:
    if verifies and "owner_role" in registration.variables:
        raise UsageError("--owner-role does not allow --verify: the owner role runs it.")
    if sample is not None and not (verifies and sample.is_file()):
        raise UsageError(f"--sample must be a file, and needs --verify. Received: {sample}")


def _require_service(registration: Registration) -> None:
    """Raises ClientError before anything is created for a URL where no server takes batches."""
    if (url := registration.variables.get("url")) is None:
        return
    try:
        require_route(url, _ANSWER_SECONDS)
    except ClientError as error:
        raise ClientError(f"{error}. Nothing was created; --force registers the URL anyway.") from None


def unregister_function(
    connection: str | None, local: bool, port: int, drop_integration: bool, as_json: bool, **given: Any
) -> None:
    variables = _defaults(local) | {name: value for name, value in given.items() if value is not None}
    if "database" not in variables:
        raise UsageError("unregister needs --database.")
    _check_values(variables)
    with open_session(connection, local, port) as user_session:
        for line in unregister(user_session, variables, drop_integration=drop_integration):
            print(_as_line("done", line) if as_json else line)


def _as_line(key: str, text: str) -> str:
    return json.dumps({key: text.strip()}, ensure_ascii=False)


def upload_files(
    paths: list[Path],
    stage: str,
    folder: str,
    overwrite: bool,
    as_json: bool,
    connection: str | None,
    local: bool,
    port: int,
) -> None:
    files = find_files(paths, folder)
    with open_session(connection, local, port) as user_session:
        if is_encrypted_by_clients(user_session, stage):
            print(
                f"Note: {stage} uses client-side encryption, so the service cannot fetch its files by URL "
                "and downloads each through Snowflake. A stage with SNOWFLAKE_SSE is faster.",
                file=sys.stderr,
            )
        try:
            with open_screen().progress(len(files), "files") as advance:
                statuses = upload(user_session, files, stage, overwrite=overwrite, advance=advance)
        except UploadIncomplete as error:
            _print_statuses(error.statuses, as_json=as_json)
            raise
        _print_statuses(statuses, as_json=as_json)


def add_commands(add: Add) -> None:
    _add_register(add)
    _add_unregister(add)
    _add_upload(add)


def _add_register(add: Add) -> None:
    command = add("register", register_function, "create or update the external function in Snowflake")
    flag = command.add_argument
    flag("--provider", choices=PROVIDERS, required=True, help="the gateway in front of the service")
    _add_names(command, None)  # no default, because spcs has no integration
    flag("--url", help="the gateway's URL of POST /classify (default with --local: the emulator's service)")
    flag("--allowed-prefix", help="URL prefix that the integration can call (default: --url)")
    kind = f"aws: kind of gateway (default {DEFAULT_API_PROVIDER})"
    flag("--api-provider", metavar="NAME", help=kind)
    flag("--role-arn", dest="aws_role_arn", help="aws: the IAM role that Snowflake assumes")
    flag("--tenant-id", dest="azure_tenant_id", help="azure: the tenant ID")
    application = "azure: the gateway's application ID"
    flag("--application-id", dest="azure_application_id", help=application)
    flag("--audience", dest="google_audience", help="google: the audience of the gateway")
    flag("--service", help="spcs: the service, db.schema.name")
    key = "aws, azure: file with the gateway's API key"
    flag("--api-key-file", type=Path, metavar="FILE", help=key)
    existing = "use an existing integration"
    flag("--no-integration", action="store_false", dest="makes_integration", help=existing)
    owner = "grant this role the integration (spcs: the endpoint), and leave the other steps to it"
    flag("--owner-role", metavar="ROLE", help=owner)
    flag("--max-batch-rows", default="64", help="(default %(default)s; see ext-classify plan)")
    flag("--caller-role", help="role to grant the function and the stage")
    flag("--service-role", help="role with which the service reads the stage")
    flag("--warehouse", help="warehouse that the service may use")
    flag("--dry-run", action="store_true", help="print the SQL without running it")
    flag("--force", action="store_true", help="also register a --url that takes no batches yet")
    calls = "call the function on a sample of its own, on --sample, and on an image of the stage"
    flag("--verify", action="store_true", dest="verifies", help=calls)
    flag("--sample", type=Path, help="another image for --verify")
    add_json(command)
    add_connection(command)


def _add_unregister(add: Add) -> None:
    summary = "drop the functions; keep the stage, its images and the integration"
    command = add("unregister", unregister_function, summary)
    _add_names(command, DEFAULT_INTEGRATION)
    drop = "also drop the integration: breaks the gateway's trust policy and all functions that use it"
    command.add_argument("--drop-integration", action="store_true", help=drop)
    add_json(command)
    add_connection(command)


def _add_upload(add: Add) -> None:
    command = add("upload", upload_files, "upload images or a model to a stage")
    flag = command.add_argument
    paths = "images, folders of images, or a network"
    flag("paths", type=Path, nargs="+", metavar="PATH", help=paths)
    flag("--stage", required=True, help="db.schema.stage")
    flag("--folder", default="", help="target folder in the stage (default: its root)")
    overwrite = "replace files with the same name and different content"
    flag("--overwrite", action="store_true", help=overwrite)
    add_json(command)
    add_connection(command)


def _add_names(command: argparse.ArgumentParser, integration: str | None) -> None:
    flag = command.add_argument
    flag("--database", help="(default with --local: LOCAL)")
    flag("--schema", default="PUBLIC", help="(default %(default)s)")
    flag("--stage", default="images", help="stage of the images (default %(default)s)")
    flag("--function", default="ext_classify", help="(default %(default)s)")
    flag("--integration", default=integration, help=f"(default {DEFAULT_INTEGRATION})")


def _defaults(local: bool) -> dict[str, str]:
    return {"database": LOCAL_DATABASE} if local else {}


def _command(arguments: str, local: bool, port: int) -> str:
    flags = (" --local" if local else "") + (f" --port {port}" if local and port != LOCAL_PORT else "")
    return f"ext-classify {arguments}{flags}"


def _print_owner_steps(registration: Registration, local: bool, port: int, *, as_json: bool) -> None:
    uses = f"--provider {registration.provider}"
    uses += "" if registration.provider == "spcs" else " --no-integration"
    command = _command(f"register {uses} …", local, port)
    if as_json:
        print(_as_line("next", command))
        return
    print(f"\nNext, as role {registration.variables['owner_role']}: {command}")
    print(
        "The role needs USAGE on the database, USAGE, CREATE FUNCTION and CREATE STAGE on the "
        "schema, and READ on the stage if another role owns it."
    )


def _print_next_steps(registration: Registration, local: bool, port: int) -> None:
    stage, function = quote_identifier(*registration.stage), quote_identifier(*registration.function)
    command = _command(f"upload photos/ --stage {shlex.quote(stage)}", local, port)
    print(f"\nNext: {command}")
    where = f", in {_command('sql', local, port)}" if local else ""
    print(f"Then{where}: SELECT relative_path, {function}(file_url) FROM {directory_of(stage)};")  # noqa: S608


def _print_statuses(statuses: Counter[str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({status.lower(): count for status, count in sorted(statuses.items())}))
        return
    print(", ".join(f"{count} {status.lower()}" for status, count in sorted(statuses.items())))
    if skipped := statuses["SKIPPED"]:
        print(
            f"{skipped} skipped: files with these names already exist, and differ or cannot be compared. "
            "--overwrite replaces them.",
            file=sys.stderr,
        )


def _print_verification(
    user_session: UserSession, registration: Registration, sample: Path | None, *, as_json: bool
) -> None:
    """Raises ClientError if the function returns an error, or Incomplete if only an image is at fault."""
    samples = [SAMPLES / "scratches.png", *([] if sample is None else [sample])]
    staged, faults = False, []
    for name, answer in verify(user_session, registration, samples):
        if as_json:
            print(json.dumps({"verified": name, "answer": answer}, ensure_ascii=False))
        else:
            print(f"\n{name}\n{json.dumps(answer, indent=2, ensure_ascii=False)}")
        staged = staged or name.startswith("@")
        if not isinstance(answer, dict) or "error" not in answer:
            raise ClientError(f"The function must return outcomes. Received: {str(answer)[:200]}")
        if (error := answer["error"]) is None:
            continue
        if name == samples[0].name or error["code"] not in _IMAGE_FAULTS:
            raise ClientError(f"The function returned an error: {error['code']}: {error['message']}")
        faults.append(f"{name}: {error['message']}")
    if not staged and not as_json:
        print("\nThe stage has no images yet: run --verify again after the upload.")
    if faults:
        raise Incomplete(f"The function works, but an image is at fault: {'; '.join(faults)}")


def read_flags(given: Mapping[str, Any], defaults: Mapping[str, str]) -> Registration:
    """`given` holds the flags' values, None if absent. Raises UsageError with messages that name flags."""
    variables = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    provider, makes_integration = variables.pop("provider"), variables.pop("makes_integration")
    if key_file := variables.pop("api_key_file", None):
        variables["api_key"] = read_api_key(key_file)
    _check_combination(provider, variables.keys(), makes_integration=makes_integration)
    _check_values(variables)
    if provider == "aws":
        variables.setdefault("api_provider", DEFAULT_API_PROVIDER)
    if provider != "spcs":
        variables.setdefault("integration", DEFAULT_INTEGRATION)
        variables.setdefault("allowed_prefix", variables["url"])
    try:
        refuse_unusable(provider, variables)
    except ValueError as error:
        raise _invalid_value(*error.args) from None
    return Registration(provider, variables, makes_integration)


def _check_combination(provider: str, given: Any, *, makes_integration: bool) -> None:
    is_external = provider != "spcs"
    if not makes_integration and (not is_external or "owner_role" in given):
        against = "--provider spcs" if not is_external else "--owner-role"
        raise UsageError(f"--no-integration and {against} cannot be combined.")
    optional = [*_IDENTITY[provider], *_OPTIONAL[provider], "allowed_prefix"] if makes_integration else []
    needed = ["database", "url", *(_IDENTITY[provider] if makes_integration else [])]
    allowed = [*needed, *optional, "integration"]
    if not is_external:
        needed = allowed = ["database", "service"]
    if "owner_role" in given:
        needed = [name for name in needed if name != "database"]
    what = f"--provider {provider}" + ("" if makes_integration else " with --no-integration")
    _reject(what, "needs", [name for name in needed if name not in given])
    _reject(what, "does not accept", [name for name in given if name not in {*allowed, *_COMMON}])
    if "owner_role" in given:
        _reject("--owner-role", "cannot be combined with", [name for name in _GRANTS if name in given])
    if "warehouse" in given and "service_role" not in given:
        raise UsageError("--warehouse needs --service-role.")


def _reject(what: str, verb: str, names: list[str]) -> None:
    if names:
        raise UsageError(f"{what} {verb} {', '.join(map(_flag_of, names))}.")


def _flag_of(variable: str) -> str:
    return _FLAGS.get(variable, f"--{variable.replace('_', '-')}")


def _check_values(variables: Mapping[str, str]) -> None:
    """Check values here, because errors from the SQL files name variables, not flags."""
    for name, value in variables.items():
        try:
            VARIABLES[name](value)
        except ValueError as error:
            raise _invalid_value(name, error) from None


def _invalid_value(variable: str, rule: object) -> UsageError:
    return UsageError(f"Invalid value for {_flag_of(variable)}. {rule}")
