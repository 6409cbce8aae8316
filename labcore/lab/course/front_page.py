"""What the front page shows: the map, own progress, where to go on; read again at the push of a button."""

from __future__ import annotations

import ipywidgets as widgets

from labcore.lab.course import progress
from labcore.lab.display import Region, figure_bundle, finding_bundle, title_of
from labcore.lab.figures.course_map import course_map
from labcore.lab.page_labels import labelling
from labcore.lab.results import folder
from labcore.lab.widgets.common import place


def front_page() -> None:
    """Show the map of the lessons with this machine's progress, and a button that reads it again."""
    picture, words = Region(), Region()

    def show(_: object = None) -> None:
        lessons = progress.of_course()
        drawn = course_map(lessons)
        picture.show(figure_bundle(drawn))
        words.show(labelling(finding_bundle(_finding(lessons), progress.rows(lessons), title_of(drawn))))

    show()
    wide = widgets.Layout(width="max-content")
    again = widgets.Button(description="Refresh my progress", icon="refresh", layout=wide)
    again.add_class("labcore-refresh")
    again.on_click(show)
    place(again, "a button that reads the progress again")


def _finding(lessons: list[progress.Progress]) -> str:
    done, asked = (sum(entry.of_all[i] for entry in lessons) for i in (0, 1))
    return (
        f"{sum(entry.is_done for entry in lessons)} of {len(lessons)} lessons are done, and {done} of "
        f"{asked} predictions, exercises and hunts. {progress.what_next(lessons)}\n"
        f"Read from {folder()}, on this machine."
    )
