"""What the demo's shell promises: its screen, its job, its key. See `test_apk`."""

import sys
import zipfile
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "android_demo"
sys.path.insert(0, str(DEMO / "build"))
import fetch  # noqa: E402
import wireframe  # noqa: E402
from classfiles import references  # noqa: E402

OUT = fetch.cache_folder() / "out/apk"
ANDROID = wireframe.ANDROID


@pytest.fixture(scope="module")
def called():
    """What each of the app's classes calls: ``owner.member``, without the descriptor."""
    found: dict[str, set[str]] = {}
    for path in (OUT / "app").rglob("*.class"):
        members = {f"{o.rpartition('/')[2]}.{m.partition('(')[0].removesuffix('$default')}"
                   for o, m in references(path.read_bytes()).members}  # fmt: skip
        found.setdefault(path.stem.partition("$")[0], set()).update(members)
    assert found, "build it: python3 android_demo/build/build.py apk"
    return found


@pytest.fixture(scope="module")
def layout():
    return list(wireframe.resource("layout/main.xml").iter())


def luminance(colour):
    """Relative luminance, WCAG 2.1."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_control_has_a_name_that_is_a_resource(layout):
    controls = {"Button", "Switch", "EditText", "org.rootlet.demo.DrawView"}
    found = [view for view in layout if view.tag in controls]
    assert len(found) == 11
    for view in found:
        names = [view.get(ANDROID + name) for name in ("text", "hint", "contentDescription")]
        assert any(name and name.startswith("@string/") for name in names), view.attrib
    texts = {name for view in layout for name in (view.get(ANDROID + "text"),) if name}
    assert all(text.startswith("@string/") for text in texts)


def test_controls_are_tall_enough_to_touch_and_changes_are_spoken(layout):
    styles = wireframe.resource("values/layouts.xml")
    heights = {style.get("name"): item.text for style in styles for item in style
               if item.get("name") == "android:minHeight"}  # fmt: skip
    for view in layout:
        if view.tag in {"Button", "Switch", "EditText"}:
            assert heights[view.get("style").removeprefix("@style/")] == "48dp", view.attrib
    spoken = {
        view.get(ANDROID + "id")
        for view in layout
        if view.get(ANDROID + "accessibilityLiveRegion") == "polite"
    }
    assert spoken == {"@+id/answer", "@+id/learnt", "@+id/federation"}


@pytest.mark.parametrize(
    ("folder", "parent"), [("values", "Material.Light"), ("values-night", "Material.NoAction")]
)
def test_both_themes_can_be_read(folder, parent):
    (style,) = wireframe.resource(f"{folder}/styles.xml")
    assert parent in style.get("parent")
    found = wireframe.values(f"{folder}/colors.xml")
    assert set(found) == {"paper", "ink"}
    light, dark = sorted((luminance(found["ink"]), luminance(found["paper"])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 7  # WCAG's AAA
    assert (luminance(found["paper"]) > 0.5) == (folder == "values")


def test_the_job_waits_for_all_four_constraints_and_yields(called):
    assert {f"JobInfo$Builder.setRequire{name}" for name in (
        "sCharging", "sDeviceIdle", "sBatteryNotLow", "dNetworkType",
    )} <= called["TrainJob"]  # fmt: skip
    assert {"StopSignal.set", "PhoneDevice.work", "Phone.conditions"} <= called["TrainJob"]


def test_the_notification_has_a_channel(called):
    manager = {
        f"NotificationManager.{n}" for n in ("createNotificationChannel", "notify", "cancel")
    }
    assert manager | {"NotificationChannel.<init>"} <= called["Notice"]
    assert {"Notice.show", "Notice.hide"} <= called["TrainJob"]


def test_the_node_key_is_the_keystores_and_no_other_can_be_made(called):
    made = {"KeyGenParameterSpec$Builder.<init>", "KeyStoreNodeKey$Companion.open"}
    assert made <= called["NodeKeys"]
    with zipfile.ZipFile(OUT / "rootlet-demo.apk") as archive:
        code = archive.read("classes.dex")
    assert b"AndroidKeyStore" in code
    assert b"Lorg/rootlet/fleet/KeyStoreNodeKey;" in code
    assert b"Lorg/rootlet/fleet/PemNodeKey;" not in code  # no key in a file


def test_the_engine_is_told_to_send_no_telemetry():
    engine = OUT.parent / "core/org/rootlet/training/Engine.class"
    members = references(engine.read_bytes()).members
    assert ("ai/onnxruntime/OrtEnvironment", "setTelemetry(Z)V") in members


def test_the_drawing_of_the_screen_is_that_of_the_layout():
    drawn = wireframe.draw()
    assert wireframe.TARGET.read_text(encoding="utf-8") == drawn, (
        "run android_demo/build/wireframe.py"
    )
    assert "not by Android" in drawn
    assert drawn.count(">TEACH IT<") == 2  # in both themes


def test_the_shell_holds_no_logic_of_its_own():
    sources = sorted((DEMO / "app/src/main/kotlin").rglob("*.kt"))
    assert len(sources) >= 5
    assert sum(len(path.read_text().splitlines()) for path in sources) < 450
