"""A plan for training on a data set: pure functions from facts and measured times to a config.

:func:`retinanet_plugin.data.planning.plan.plan_for_data` is where to start; docs/new.md says what
was measured for it.
"""
