"""What people see of a dissection: scalars, tables, figures. Reads a Dissection, never a model."""

from lightning_hnd.report.figures import concept_histogram, overlays
from lightning_hnd.report.scalars import scalars
from lightning_hnd.report.sheets import contact_sheet
from lightning_hnd.report.tables import markdown_table, summary_table

__all__ = ["concept_histogram", "contact_sheet", "markdown_table", "overlays", "scalars", "summary_table"]
