"""The controls of the token inspector."""

from __future__ import annotations

import ipywidgets

from rlkd_lab.lab.live.controls import button, row
from rlkd_lab.lab.live.token_view import TokenView


class InspectorWidgets:
    """The controls of an inspector, without their callbacks; ``widget`` holds them all."""

    def __init__(self) -> None:
        layout = ipywidgets.Layout
        field = layout(width="auto", min_width="10em", max_width="24em")
        modes = [("one rollout", False), ("same prompt across steps", True)]
        self.mode = ipywidgets.Dropdown(options=modes, description="show", layout=field)
        self.step = ipywidgets.Dropdown(description="step", layout=layout(width="11em"))
        self.prompt = ipywidgets.Dropdown(description="prompt", layout=field)
        self.sample = ipywidgets.Dropdown(description="sample", layout=field)
        self.array = ipywidgets.Dropdown(description="colour by", layout=field)
        self.position = ipywidgets.BoundedIntText(
            min=1,
            max=10**6,
            description="token",
            continuous_update=False,
            layout=layout(width="14em"),
            style={"description_width": "8em"},
        )
        self.previous = button("◀ previous", tooltip="previous token")
        self.next = button("next ▶", tooltip="next token")
        marked = "next dead or bounded token of this completion"
        self.next_marked = button("next marked ▶", tooltip=marked)
        self.look_again = button("look for new steps", tooltip="read the run folder again")
        joined = layout(margin="0", width="100%")  # one sheet
        wide = layout(margin="0", width="100%", overflow="auto")  # a narrow page scrolls tables
        self.banner, self.legend, self.detail = (ipywidgets.HTML(layout=wide) for _ in range(3))
        self.view = TokenView(layout=joined)
        which = [self.mode, self.step, self.prompt, self.sample, self.look_again]
        moves = [self.array, self.previous, self.position, self.next, self.next_marked]
        self.widget = ipywidgets.VBox(
            [
                row(*which),
                self.banner,
                row(*moves),
                self.legend,
                self.view,
                self.detail,
            ]
        )
