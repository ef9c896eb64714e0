"""Takes the pictures of the widget that README and the notebooks show.

    python -m tests.browser.pictures

Each is of a notebook's own models and data, trained in the widget in JupyterLab.
"""

import re
import tempfile
from pathlib import Path

import nbformat

from tests.browser import lab

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

# By notebook: what is picked for each model, and the file of the picture.
PICTURES = {
    "04-widget": (
        {
            "tumour": {"x": "x_tumour", "y": "y_tumour", "epochs": 20},
            "diabetes": {"x": "x_diabetes", "y": "y_diabetes", "epochs": 40},
        },
        "widget.png",
    ),
    "01-quickstart": (
        {
            "cnn": {"x": "images", "y": "digit", "epochs": 20},
            "mlp": {"x": "analysis", "y": "grower", "epochs": 60},
            "gru": {"x": "past", "y": "following", "epochs": 30},
        },
        "quickstart-widget.png",
    ),
}


def take(name, members, file):
    """Runs a notebook's cells, but for its trainings, and trains in the widget."""
    cells = [
        cell.source
        for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
        if cell.cell_type == "code"
    ]
    made = [cell for cell in cells if "import keras" in cell or "build()" in cell[:60]]
    made = [cell for cell in made if "began" not in cell and "CohostSession" not in cell]
    with tempfile.TemporaryDirectory() as folder, lab.browser_page(1500, 1800) as page:
        path = Path(folder, "picture.ipynb")
        lab.notebook(path, [*made, f"%load_ext kerascohost\n%cohost {' '.join(members)}"])
        with lab.server(folder) as (address, token):
            page.goto(f"{address}/lab/tree/{path.name}?token={token}&reset")
            lab.run_all(page)
            page.get_by_role("button", name="Train", exact=True).first.wait_for(timeout=120_000)
            for member, chosen in members.items():
                for argument in ("x", "y"):
                    choice = page.get_by_label(f"{argument} of {member}", exact=True)
                    shown = re.compile(rf"^{chosen[argument]}\b")  # with the shape behind it
                    option = choice.locator("option").filter(has_text=shown)
                    choice.select_option(label=option.inner_text())
                box = page.get_by_role("spinbutton", name=f"epochs of {member}")
                box.fill(str(chosen["epochs"]))
                box.press("Tab")
            page.get_by_label("validation of all ticked").select_option(label="last 20 %")
            page.get_by_role("button", name="Train", exact=True).click()
            page.get_by_text("Trained after").first.wait_for(timeout=120_000)
            page.mouse.move(0, 0)
            page.locator(".kerascohost").first.screenshot(path=NOTEBOOKS / "images" / file)


if __name__ == "__main__":
    for name, (members, file) in PICTURES.items():
        take(name, members, file)
