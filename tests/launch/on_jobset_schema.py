"""Validates what launch/gke.sh sends to Kubernetes against the published schema of JobSet, as its server would.

    python tests/launch/on_jobset_schema.py jobset.x-k8s.io_jobsets.yaml

The file is the CustomResourceDefinition in charts/jobset/crds of github.com/kubernetes-sigs/jobset; it is not part of
this project. A field that the schema does not have is refused, too. The test command has a list of the fields
that are used instead (tests/launch/test_gke.py).
"""

import argparse
import os
import pathlib
import subprocess

import jsonschema
import yaml

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"


def sent(*flags, **settings):
    """The JobSet that gke.sh would send."""
    line = ["bash", LAUNCH / "gke.sh", "--dry-run", *flags]
    done = subprocess.run(line, env=os.environ | settings, capture_output=True, text=True, check=True)
    return yaml.safe_load("\n".join(done.stdout.splitlines()[1:-1]))


def strict(schema):
    """The schema, refusing fields that it does not name; a number or text where it says either."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


def problems(crd, jobset):
    """A line for everything that the schema of the JobSet's version does not allow."""
    group, _, version = jobset["apiVersion"].partition("/")
    assert group == crd["spec"]["group"] and jobset["kind"] == crd["spec"]["names"]["kind"]
    served = {each["name"]: each for each in crd["spec"]["versions"] if each["served"]}
    if version not in served:
        return [f"apiVersion: got {version}, expected one of {', '.join(served)}"]
    schema = strict(served[version]["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    found = jsonschema.Draft202012Validator(schema).iter_errors(jobset)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("crd", type=pathlib.Path, help="the CustomResourceDefinition of JobSet, a YAML file")
    crd = yaml.safe_load(parser.parse_args().crd.read_text(encoding="utf-8"))
    jobset = sent("--config=c.py", '--workdir=/shared/a "b"', IMAGE="image:1")
    # The check must be able to fail.
    jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["restartPolice"] = "Never"
    jobset["spec"]["failurePolicy"]["maxRestarts"] = "twenty"
    made_wrong = problems(crd, jobset)
    assert len(made_wrong) == 2, made_wrong
    for hosts in ("1", "4"):
        found = problems(crd, sent("--config=c.py", '--workdir=/shared/a "b"', IMAGE="image:1", HOSTS=hosts))
        if found:
            raise SystemExit("error: gke_jobset.yaml is not valid:\n" + "\n".join(found))
    print("gke_jobset.yaml is valid")


if __name__ == "__main__":
    main()
