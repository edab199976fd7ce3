"""Two small tasks of lm-evaluation-harness, as files."""

import json


def write_tasks(folder):
    """A multiple-choice and a generation task, as files."""
    places = ("Om", "Nil the long", "Ul")
    rows = [{"q": f"The river of town {n} is", "choices": places, "answer": n % 3} for n in range(7)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/rows.jsonl\ntest_split: test\n"
    (folder / "choice.yaml").write_text(
        "task: local_choice\n" + head + 'output_type: multiple_choice\ndoc_to_text: "{{q}}"\n'
        'doc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n  - metric: brier_score\n"
    )
    (folder / "answer.yaml").write_text(
        "task: local_answer\n" + head + 'output_type: generate_until\ndoc_to_text: "{{q}}"\ndoc_to_target: "Om"\n'
        'generation_kwargs:\n  until: ["t"]\n  max_gen_toks: 12\nmetric_list:\n  - metric: chrf\n'
    )
    return folder
