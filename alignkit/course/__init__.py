"""The course: set-up, figures, widgets, exercises and the tools on notebooks.

Nothing below this floor knows that notebooks exist.
"""
