"""What a user does in the widget: ticks, fields, buttons, tabs; by role and accessible name."""


def shoot(page, path, where=".kerascohost"):
    """A picture of the widget, or of a part of it, without the pointer's traces."""
    page.mouse.move(0, 0)
    page.locator(where).first.screenshot(path=path)


def pick(where, names):
    for name in names:
        where.get_by_role("checkbox", name=name, exact=True).check()


def set_number(where, name, value):
    box = where.get_by_role("spinbutton", name=name)
    box.fill(str(value))
    box.press("Tab")


def choose_layout(page, name):
    page.get_by_role("radio", name=name, exact=True).check()


def press(where, name):
    where.get_by_role("button", name=name, exact=True).click()


def open_tab(where, name):
    where.get_by_role("tab", name=name, exact=True).click()


def train(where):
    open_tab(where, "Train")
    press(where, "Train")
    said(where, "Trained after")


def said(where, text):
    """Waits for a text in the open tab."""
    where.locator(".kc-pane").get_by_text(text).first.wait_for(timeout=120_000)


def is_usable(page, name):
    return page.get_by_role("button", name=name, exact=True).is_enabled()


def copy(page, name):
    """Copies all the text of a text area, as a person does."""
    page.get_by_role("textbox", name=name).click()
    page.keyboard.press("Control+a")
    page.keyboard.press("Control+c")
