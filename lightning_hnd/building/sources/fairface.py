"""FairFace: age, gender and race in a CSV file."""

from __future__ import annotations

from lightning_hnd.building.faces import Face
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.sources.options import SourceOptions, existing
from lightning_hnd.building.tables import read_table

_AGE = {
    **dict.fromkeys(("0-2", "3-9", "10-19"), "zero_to_twenty"),
    **dict.fromkeys(("20-29", "30-39"), "twenty_to_forty"),
    **dict.fromkeys(("40-49", "50-59"), "forty_to_sixty"),
    **dict.fromkeys(("60-69", "70+", "more than 70"), "sixty_plus"),
}
_ETHNICITY = {
    "white": "white",
    "black": "black",
    "east asian": "asian",
    "southeast asian": "asian",
    "indian": "indian",
}
_NO_GROUP = {"latino_hispanic", "middle eastern"}


def read_fairface(options: SourceOptions, findings: Findings) -> list[Face]:
    """Reads ``fairface_label_train.csv`` and ``fairface_label_val.csv``, whose ``file`` is a path like ``train/1.jpg``.

    East and Southeast Asian make the group asian. Latino_Hispanic and Middle Eastern are in no group of the paper;
    their faces serve for age and gender. Spreadsheets turn the ages 3-9 and 10-19 into dates (``9-Mar``, ``Oct-19``);
    these are understood.

    Args:
        options: Where it is.
        findings: Gets what could not be used.

    Returns:
        The labelled faces.

    Raises:
        FileNotFoundError: If there is no table.
        ValueError: If a column is missing.
    """
    names = [f"{stem}{name}.csv" for name in ("train", "val") for stem in ("fairface_label_", "fairface_labels_")]
    tables = [options.file(options.labels, what="")] if options.labels else []
    tables += [options.folder() / name for name in names if not tables and (options.root / name).is_file()]
    if not tables:
        raise FileNotFoundError(f"{options.root} has no table of labels ({', '.join(names[::2])})")
    faces = []
    for path in tables:
        assert path is not None
        table = read_table(path, findings)
        age, gender, race = (table.column(*names) for names in (("age",), ("gender", "sex"), ("race", "ethnicity")))
        for picture, name, row in existing(table.rows, options.root, findings):
            groups = {
                "age": _AGE.get({"9-Mar": "3-9", "Mar-09": "3-9", "Oct-19": "10-19"}.get(row[age], row[age])),
                "gender": {"male": "Male", "female": "Female"}.get(row[gender].lower()),
                "ethnicity": _ETHNICITY.get(row[race].lower()),
            }
            for label, place in (("age", age), ("gender", gender), ("ethnicity", race)):
                if groups[label] is None and row[place].lower() not in _NO_GROUP:
                    findings.add(f"{label} is none of FairFace's", f"{name}: {row[place]!r}")
            known = {label: group for label, group in groups.items() if group is not None}
            faces.append(
                Face(options.name, options.root, picture, groups=known, labels={"race": row[race], "years": row[age]})
            )
    return faces
