"""Pages of flaxvgg in a browser, and how their controls are used."""

from pathlib import Path

from browser import Browser

PHONE, DESK = (390, 844), (1280, 900)


def choose(browser: Browser, name: str, value: object) -> None:
    """Use a control as a user does: its value, and the events that a browser sends."""
    browser.evaluate(
        f"""(() => {{
        const control = document.querySelector(".viewer .{name} :is(select, input)");
        if (control.type === "checkbox") return control.click();
        control.value = {str(value)!r};
        for (const kind of ["input", "change"]) control.dispatchEvent(new Event(kind));
        }})()"""
    )
    settled(browser)


def settled(browser: Browser) -> None:
    """Wait until what was asked for is drawn."""
    browser.evaluate(
        """(async () => {
        for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame);
        const { viewer } = document.documentElement;
        await viewer.frame;
        await viewer.drawn;
        })()"""
    )


def opened(browser: Browser, page: Path, size: tuple[int, int], scheme: str = "light") -> None:
    browser.open(page, *size, scheme)
    browser.evaluate(
        """(async () => {
        while (!document.querySelector(".viewer .name").textContent)
          await new Promise(requestAnimationFrame);
        })()"""
    )
    settled(browser)


def text(browser: Browser, selector: str) -> str:
    return browser.evaluate(f"document.querySelector({selector!r}).innerText")
