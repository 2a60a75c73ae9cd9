"""The page of a plan: one HTML file that opens without a network."""

from .plan import Plan


def write_plan_page(path: str, plan: Plan) -> None:
    """Write the page; see :class:`retinanet_plugin.report.plan.Plan`.

    Raises:
        UserError: the file cannot be written.
    """
    raise NotImplementedError
