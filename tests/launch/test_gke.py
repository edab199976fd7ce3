"""launch/gke.sh: the JobSet that it sends. Against JobSet's own schema: tests/launch/on_jobset_schema.py."""

import re

import pytest
import yaml

# Every field that is used, and what stands there; a list has one entry, whose number is 0.
POD = "spec.replicatedJobs.0.template.spec.template.spec"
FIELDS = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata.name": "selfparam",
    "metadata.annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
    "spec.failurePolicy.maxRestarts": 20,
    "spec.replicatedJobs.0.name": "workers",
    "spec.replicatedJobs.0.replicas": 1,
    "spec.replicatedJobs.0.template.spec.parallelism": 2,
    "spec.replicatedJobs.0.template.spec.completions": 2,
    "spec.replicatedJobs.0.template.spec.backoffLimit": 0,
    f"{POD}.restartPolicy": "Never",
    f"{POD}.nodeSelector": {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    },
    f"{POD}.terminationGracePeriodSeconds": 120,
    f"{POD}.containers.0.name": "selfparam",
    f"{POD}.containers.0.image": "image:1",
    f"{POD}.containers.0.command": ["python", "-m", "selfparam_jax.main"],
    f"{POD}.containers.0.args": ["--config=c.py", '--workdir=/shared/a "b" \\c', "--distributed=on"],
    f"{POD}.containers.0.ports": [{"containerPort": 8471}, {"containerPort": 8476}],
    f"{POD}.containers.0.resources.limits": {"google.com/tpu": 4},
    f"{POD}.containers.0.volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
    f"{POD}.volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "selfparam"}}],
}
FLAGS = ("--config=c.py", '--workdir=/shared/a "b" \\c')


@pytest.fixture
def jobset(shown):
    """A function: settings -> the JobSet."""

    def jobset(**settings):
        first, *lines, last = shown("gke.sh", *FLAGS, **{"IMAGE": "image:1"} | settings)
        assert (first, last) == ("kubectl apply -f - <<'END'", "END")
        text = "\n".join(line for line in lines if not line.startswith("#"))
        assert "${" not in text
        return yaml.safe_load(text)

    return jobset


def fields(value, name=""):
    """{dotted name: value} down to the names in FIELDS, or to what is neither a dict nor a list."""
    if name in FIELDS or not isinstance(value, dict | list):
        return {name: value}
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = {}
    for key, each in inner:
        found |= fields(each, f"{name}.{key}".lstrip("."))
    return found


def test_the_fields(jobset):
    assert fields(jobset(HOSTS="2")) == FIELDS


def test_the_settings(jobset):
    given = {"NAME": "mine", "CLAIM": "disk", "ACCELERATOR": "tpu-v6e-slice", "TOPOLOGY": "2x4", "HOSTS": "2"}
    found = fields(jobset(**given, CHIPS="8", RETRIES="3", IMAGE="other"))
    changed = {name for name, value in found.items() if value != FIELDS[name]}
    assert {name.rpartition(".")[2] for name in changed} == {
        "name", "maxRestarts", "nodeSelector", "image", "limits", "volumes"
    }  # fmt: skip
    assert found[f"{POD}.nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x4"
    assert found[f"{POD}.volumes"][0]["persistentVolumeClaim"] == {"claimName": "disk"}
    # Pods are named NAME-workers-0-INDEX, at most 63 characters of these.
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", f"{found['metadata.name']}-workers-0-1")


def test_what_kubectl_says_is_passed_on(run, tmp_path):
    """The JobSet reaches kubectl whole; its failure is the script's."""
    (tmp_path / "kubectl").write_text('#!/bin/sh\necho "$*" >calls\ncat >given\necho "no cluster" >&2\nexit 4\n')
    (tmp_path / "kubectl").chmod(0o755)
    done = run("gke.sh", *FLAGS, cwd=tmp_path, IMAGE="image:1", HOSTS="2", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert (done.returncode, done.stderr) == (4, "no cluster\n")
    assert (tmp_path / "calls").read_text() == "apply -f -\n"
    assert fields(yaml.safe_load((tmp_path / "given").read_text())) == FIELDS
