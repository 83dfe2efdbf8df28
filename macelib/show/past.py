"""What the studio has shown: a list to choose from, which sets the controls back to that state."""

from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets

MOST = 40  # states that are kept


class Past:
    """States of controls by label, the newest first, in the drop-down list `choice`; choosing one sets them all."""

    def __init__(self, choice: widgets.Dropdown):
        self.choice, self.states = choice, {}

    def add(self, settings: Mapping, erased: str, controls: Mapping[str, widgets.Widget], quiet) -> None:
        """Put the controls' values on top of the list; in the context `quiet` nobody hears that the list changes."""
        prompts = " and ".join(f"“{settings[name]}”" for name in ("prompt", "beside") if name in settings)
        seeds, how = ", ".join(map(str, settings["seeds"])), f"{settings['steps']} steps at {settings['guidance']:g}"
        label = f"{prompts}; erased: {erased}; seeds {seeds}; {how}"
        self.states.pop(label, None)
        self.states = {label: {name: control.value for name, control in controls.items()}} | self.states
        self.states = dict(list(self.states.items())[:MOST])
        with quiet:
            self.choice.options, self.choice.value = list(self.states), label

    def back(self, controls: Mapping[str, widgets.Widget], absent: Mapping[str, Any]) -> None:
        """Set the controls to the chosen state; what came later is set to the value in `absent`, or stays."""
        state = self.states[self.choice.value]
        for name, control in controls.items():
            control.value = state.get(name, absent.get(name, control.value))
