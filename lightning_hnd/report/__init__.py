"""What people see of a dissection, and of a dictionary: scalars, tables, figures. Never reads a model."""

from lightning_hnd.report.figures import concept_histogram, overlays, rotation_plot
from lightning_hnd.report.files import history
from lightning_hnd.report.keys import scalars
from lightning_hnd.report.sheets import contact_sheet
from lightning_hnd.report.tables import markdown_table, summary_table

__all__ = [
    "concept_histogram",
    "contact_sheet",
    "history",
    "markdown_table",
    "overlays",
    "rotation_plot",
    "scalars",
    "summary_table",
]
