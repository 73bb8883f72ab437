"""What people see of a dissection, and of a dictionary: scalars, tables, figures. Never reads a model."""

from lightning_hnd.report.figures import concept_histogram, overlays, rotation_plot
from lightning_hnd.report.files import history
from lightning_hnd.report.keys import scalars, scalars_over_time
from lightning_hnd.report.sheets import contact_sheet
from lightning_hnd.report.tables import markdown_table, summary_table
from lightning_hnd.report.timelines import timeline_picture, write_timeline

__all__ = [
    "concept_histogram",
    "contact_sheet",
    "history",
    "markdown_table",
    "overlays",
    "rotation_plot",
    "scalars",
    "scalars_over_time",
    "summary_table",
    "timeline_picture",
    "write_timeline",
]
