"""docs/kubernetes.yaml: valid for Kubernetes, whole in itself, and its Redis starts and
delivers."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from keyspace_amqp.demo.servers import RedisServer
from keyspace_amqp.tools.path import module_path
from tests.fix_servers import ROOT, Mailbox, settled

OBJECTS: dict[str, Any] = {
    each["kind"]: each
    for each in yaml.safe_load_all((ROOT / "docs" / "kubernetes.yaml").read_text())
}
POD = OBJECTS["StatefulSet"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
(INIT,) = POD["initContainers"]
CONF = OBJECTS["ConfigMap"]["data"]["redis.conf"]


@pytest.mark.parametrize("version", ["1.27", "1.37"])
@pytest.mark.parametrize("kind", OBJECTS)
def test_the_schema(kind: str, version: str) -> None:
    """Strict: a field that Kubernetes does not know is an error."""
    assert kubernetes_validate.validate(OBJECTS[kind], version, strict=True) == version


def test_the_objects_belong_together() -> None:
    spec = OBJECTS["StatefulSet"]["spec"]
    labels = spec["template"]["metadata"]["labels"].items()
    assert spec["selector"]["matchLabels"].items() <= labels
    assert OBJECTS["Service"]["spec"]["selector"].items() <= labels
    assert spec["serviceName"] == OBJECTS["Service"]["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert volumes["config"]["configMap"]["name"] == OBJECTS["ConfigMap"]["metadata"]["name"]
    assert volumes["amqp"]["secret"]["secretName"] == OBJECTS["Secret"]["metadata"]["name"]
    claims = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    for container in (CONTAINER, INIT):
        assert {m["name"] for m in container["volumeMounts"]} <= {*volumes, *claims}
    assert CONTAINER["image"] == INIT["image"]


@pytest.mark.parametrize("container", [INIT, CONTAINER], ids=lambda each: each["name"])
def test_a_namespace_of_the_profile_restricted_takes_the_pod(container: dict[str, Any]) -> None:
    """It asks each container for these, the init container too."""
    own = container["securityContext"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_password_is_in_the_secret_alone() -> None:
    (password,) = OBJECTS["Secret"]["stringData"].values()
    assert password not in json.dumps([each for kind, each in OBJECTS.items() if kind != "Secret"])
    assert re.search(r"^keyspaceamqp.url amqp://\w+@", CONF, re.MULTILINE)
    assert POD["automountServiceAccountToken"] is False  # one more, which nobody needs


def test_a_copy_that_was_interrupted_is_none(tmp_path: pathlib.Path) -> None:
    """The file is there in one piece or not at all: the next start would take a part for it."""
    (tmp_path / "config").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "config" / "redis.conf").write_text(CONF)
    cp = tmp_path / "cp"
    cp.write_text('#!/bin/sh\nhead -c 100 "$1" >"$2"\nexit 1\n')
    cp.chmod(0o755)
    command = [
        word.replace("/data/", f"{tmp_path}/data/").replace("/config/", f"{tmp_path}/config/")
        for word in INIT["command"]
    ]
    path = os.environ["PATH"]
    assert subprocess.run(command, env={"PATH": f"{tmp_path}:{path}"}).returncode != 0
    assert not (tmp_path / "data" / "redis.conf").exists()
    subprocess.run(command, check=True)
    assert (tmp_path / "data" / "redis.conf").read_text() == CONF


def test_redis(tmp_path: pathlib.Path, mailbox: Mailbox) -> None:
    """The command of the init container runs, and a server with the file delivers; both with the
    folders, the module and the broker of this test in place of those of the example."""
    volumes = {m["mountPath"]: m["name"] for c in (CONTAINER, INIT) for m in c["volumeMounts"]}
    replaced = {path: str(tmp_path / name) for path, name in volumes.items()}
    replaced["/opt/keyspace-amqp/libredis_keyspace_amqp.so"] = str(module_path())
    replaced["rabbitmq:5672"] = f"127.0.0.1:{mailbox.broker.port}"

    def here(text: str) -> str:
        for name, value in replaced.items():
            text = text.replace(name, value)
        return text

    assert all(name in CONF + str(INIT["command"]) for name in replaced)
    for name in volumes.values():
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "config" / "redis.conf").write_text(here(CONF))
    mailbox.broker.ctl("add_user", "events", "from-file")
    mailbox.broker.ctl("set_permissions", "events", ".*", ".*", ".*")
    (tmp_path / "amqp" / "password").write_text("from-file")
    copy = [here(word) for word in INIT["command"]]
    (conf,) = (pathlib.Path(here(word)) for word in CONTAINER["args"])

    subprocess.run(copy, check=True)
    options = [*conf.read_text().splitlines(), f"keyspaceamqp.routing-key {mailbox.routing_key}"]
    with RedisServer(tmp_path / "server", options=options) as server:
        client = server.client()
        client.set("a", 1)
        client.delete("a")
        settled(client, state="connected", confirmed=1)
        assert mailbox.receive(1)[0].event == (0, b"del", b"a")
    assert (tmp_path / "data" / "appendonlydir").is_dir()
    conf.write_text("# rewritten")
    subprocess.run(copy, check=True)
    assert conf.read_text() == "# rewritten"
