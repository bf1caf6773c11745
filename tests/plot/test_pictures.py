"""Pictures: the data they show, the axes they draw on, and that nothing is cut with few groups and with many."""

import functools
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from generalized import cows, wine
from matplotlib import pyplot as plt
from references import data as reference_data
from scipy import stats

import jmixed as jm

matplotlib.use("Agg")


@functools.cache
def sleep():
    return jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()


@functools.cache
def schools(count):
    rng = np.random.default_rng(4)
    k = np.repeat(np.arange(count), 8)
    b = rng.normal(size=(count, 2)) * [3, 0.5]
    x = rng.uniform(0, 10, len(k))
    y = 20 + 2 * x + b[k, 0] + b[k, 1] * x + rng.normal(size=len(k))
    names = [f"a school with a long name, {one:03d}" for one in k]
    return jm.mixedlm("score ~ x + (x | school)", pd.DataFrame({"score": y, "x": x, "school": names})).fit()


TRIAL = "y ~ x * arm + C(dose) + (1 | patient)"


def trial_data():
    rng = np.random.default_rng(8)
    patient = np.repeat(np.arange(12), 10)
    data = pd.DataFrame({"patient": [f"p{k}" for k in patient], "x": rng.normal(size=120)})
    data["arm"] = rng.choice(["control", "treated"], 120, p=[0.3, 0.7])
    data["dose"] = rng.integers(1, 4, 120)
    data["site"] = np.where(patient % 3 == 0, "north", "south")
    noise = rng.normal(size=12)[patient] + rng.normal(size=120)
    return data.assign(y=data.x + 10 * (data.arm == "treated") + data.dose**2 + noise)


@functools.cache
def trial():
    return jm.mixedlm(TRIAL, trial_data()).fit()


def legend(ax):
    return [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]


def test_the_legend_says_which_line_is_drawn():
    assert legend(jm.plot.fitted(sleep(), levels=["308"])) == ["308", "fixed effects"]
    assert legend(jm.plot.fitted(trial()))[-1] == "fixed effects, mean over the rows"
    ax = jm.plot.fitted(trial(), by="arm")
    assert legend(ax) == ["arm = control", "arm = treated"]
    title = ax.get_legend().get_title().get_text().replace("\n", " ")
    assert title == "fixed effects, mean over the rows faint: 12 levels of patient"


@pytest.mark.parametrize("width", [3.3, 7.0])
def test_neither_names_nor_the_legend_take_the_room_of_the_picture(width):
    """In the width of a column and of a page: axes keep more than half of it, and names of categories do not touch."""
    words = {"control": "no treatment at all", "treated": "two weeks of treatment"}
    data = trial_data()
    data["arm"] = data["arm"].map(words)
    result = jm.mixedlm(TRIAL, data).fit()
    for draw in (jm.plot.fitted, jm.plot.effects):
        for x, by in (("arm", "dose"), ("x", "arm")):
            figure, ax = plt.subplots(figsize=(width, 3), layout="constrained")
            draw(result, x, by=by, ax=ax)
            figure.canvas.draw()
            assert ax.get_position().width > 0.5
            boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
            assert all(left.x1 < right.x0 for left, right in zip(boxes[:-1], boxes[1:], strict=True))
            assert not any(ax.get_legend().get_window_extent().overlaps(box) for box in boxes)
            plt.close(figure)


def test_categories_are_named_on_the_axis():
    ax = jm.plot.fitted(trial(), "arm")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["control", "treated"]
    dashed = next(line for line in ax.get_lines() if line.get_linestyle() == "--")
    table = jm.plot.fitted_data(trial(), "arm")
    np.testing.assert_allclose(dashed.get_ydata(), table.loc[table["patient"].isna(), "fitted"])
    machines = jm.mixedlm("score ~ Machine + (1 | Worker)", jm.datasets.load("machines")).fit()
    assert jm.plot.fitted(machines).get_xlabel() == "Machine"


class Drawn(SimpleNamespace):
    """What stands in for the object of a bootstrap or of a profile."""

    bse = confint = None


REPLICATES = pd.DataFrame({"Intercept": np.random.default_rng(1).normal(250, 7, 500), "sigma": 25.0})
PROFILE = pd.DataFrame({"parameter": ["sigma"] * 3 + ["Days"], "value": [30.0, 22, 26, 10], "zeta": [2.5, -2.5, 0, 0]})
PICTURES = {
    "caterpillar": lambda result, **options: jm.plot.caterpillar(result, **options),
    "residuals": lambda result, **options: jm.plot.residuals(result, **options),
    "qq": lambda result, **options: jm.plot.qq(result, **options),
    "qq of random effects": lambda result, **options: jm.plot.qq(result, "school", "x", **options),
    "fitted": lambda result, **options: jm.plot.fitted(result, **options),
    "profile": lambda result, **options: jm.plot.profile(PROFILE, **options),
    "bootstrap": lambda result, **options: jm.plot.bootstrap(REPLICATES, **options),
}


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.mark.parametrize("count", [3, 300])
@pytest.mark.parametrize("name", PICTURES)
def test_nothing_is_cut_and_labels_do_not_overlap(name, count):
    ax = PICTURES[name](schools(count))
    figure = ax.figure
    figure.canvas.draw()
    whole, drawn = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert drawn.x0 >= whole.x0 - 1
    assert drawn.y0 >= whole.y0 - 1
    assert drawn.x1 <= whole.x1 + 1
    assert drawn.y1 <= whole.y1 + 1
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    ticks = [label.get_window_extent() for label in ax.get_yticklabels() if label.get_text()]
    boxes = sorted(ticks, key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in zip(boxes[:-1], boxes[1:], strict=True))
    # At least half of the width belongs to the picture, however long the names are.
    assert ax.get_position().width > 0.4


@pytest.mark.parametrize("name", PICTURES)
def test_axes_that_are_given_are_drawn_on_and_returned(name):
    _, ax = plt.subplots()
    assert PICTURES[name](schools(3), ax=ax) is ax
    assert ax.has_data()
    assert plt.get_fignums() == [ax.figure.number]


class TestData:
    def test_caterpillar(self):
        table = jm.plot.caterpillar_data(sleep(), "Subject", "Days", level=0.9)
        modes, covariances = sleep().ranef(cond_var=True)
        assert table["estimate"].is_monotonic_increasing
        own = table.set_index("Subject").loc[modes["Subject"].index]
        np.testing.assert_array_equal(own["estimate"], modes["Subject"]["Days"])
        half = stats.norm.ppf(0.95) * np.sqrt(covariances["Subject"][:, 1, 1])
        np.testing.assert_allclose(own["upper"] - own["estimate"], half)
        np.testing.assert_allclose(own["estimate"] - own["lower"], half)

    def test_residuals(self):
        table, augmented = jm.plot.residuals_data(sleep()), sleep().augment()
        np.testing.assert_array_equal(table["fitted"], augmented[".fitted"])
        np.testing.assert_array_equal(table["residual"], augmented[".std.resid"])

    def test_quantiles(self):
        table = jm.plot.qq_data(sleep())
        np.testing.assert_array_equal(table["sample"], np.sort(sleep().augment()[".std.resid"]))
        np.testing.assert_allclose(table["normal"], stats.norm.ppf((np.arange(180) + 0.5) / 180))

    def test_standardised_modes_have_unit_variance_under_the_model(self):
        """The covariance of b^ is Cov(b^, y) V^-1 Cov(y, b^): D Z' (V^-1 - V^-1 X M X' V^-1) Z D."""
        result = sleep()
        term, X = result.model.spec.terms[0], result.model.exog
        D = np.kron(np.eye(18), result.cov_re)
        known = (term.codes[:, None] == np.arange(18)) * 1.0
        Z = np.einsum("nl,nq->nlq", known, term.Z).reshape(len(X), -1)
        inverse = np.linalg.inv(Z @ D @ Z.T + result.scale * np.eye(len(X)))
        M = np.linalg.inv(X.T @ inverse @ X)
        variance = np.diag(D @ Z.T @ (inverse - inverse @ X @ M @ X.T @ inverse) @ Z @ D)[1::2]
        expected = np.sort(result.ranef()["Subject"]["Days"] / np.sqrt(variance))
        np.testing.assert_allclose(jm.plot.qq_data(result, "Subject", "Days")["sample"], expected, rtol=1e-8)

    def test_fitted_lines(self):
        table = jm.plot.fitted_data(sleep(), levels=["308", "335"])
        assert table["Subject"].drop_duplicates().tolist() == ["308", "335", None]
        row = table[table["Subject"] == "335"].iloc[7]
        new = pd.DataFrame({"Days": [row["Days"]], "Subject": ["335"]})
        assert row["fitted"] == pytest.approx(sleep().predict(new, random_effects=True).iloc[0])
        last = table[table["Subject"].isna()]
        np.testing.assert_allclose(last["fitted"], 251.405105 + 10.467286 * last["Days"], rtol=1e-7)

    def test_other_predictors_are_held(self):
        data = jm.datasets.load("oxboys").assign(wave=lambda d: np.arange(len(d)) % 7.0)
        result = jm.mixedlm("height ~ age + wave + (1 | Subject)", data).fit()
        table = jm.plot.fitted_data(result, x="age", levels=["1"])
        own = data[data["Subject"] == "1"]
        new = pd.DataFrame({"age": table["age"].iloc[:1], "wave": own["wave"].mean(), "Subject": "1"})
        assert table["age"].iloc[0] == own["age"].min()
        assert table["fitted"].iloc[0] == pytest.approx(result.predict(new, random_effects=True).iloc[0])

    @pytest.mark.parametrize(
        ("x", "by"), [(x, by) for x in ("x", "arm", "dose") for by in (None, "arm", "site") if x != by]
    )
    def test_lines_are_means_of_predictions_over_the_rows(self, x, by):
        result, data = trial(), trial_data()
        table = jm.plot.fitted_data(result, x, levels=["p0", "p7"], by=by)
        strata = [None] if by is None else sorted(data[by].unique())
        for level, which in [(level, which) for level in ("p0", "p7", None) for which in strata]:
            rows = data if level is None else data[data["patient"] == level]
            if by == "arm" and level is None:
                rows = rows.assign(arm=which)
            elif by is not None:
                rows = rows[rows[by] == which]
            line = table[table["patient"].isna() if level is None else table["patient"] == level]
            line = line if by is None else line[line[by] == which]
            assert len(line) == (0 if rows.empty else 30 if x == "x" else rows[x].nunique())
            for _, point in line.iloc[:: max(1, len(line) - 1)].iterrows():
                expected = result.predict(rows.assign(**{x: point[x]}), random_effects=level is not None).mean()
                assert point["fitted"] == pytest.approx(expected, rel=1e-9)

    def test_lines_by_level_differ_by_the_coefficient(self):
        result = jm.mixedlm("y ~ x + arm + C(dose) + (1 | patient)", trial_data()).fit()
        table = jm.plot.fitted_data(result, by="arm")
        whole = table[table["patient"].isna()].pivot(index="x", columns="arm", values="fitted")
        np.testing.assert_allclose(whole["treated"] - whole["control"], result.fe_params["arm[T.treated]"], rtol=1e-9)

    def test_the_order_of_rows_does_not_matter(self):
        for data in (trial_data().iloc[::-1], trial_data().sample(frac=1, random_state=3)):
            other = jm.mixedlm(TRIAL, data).fit()
            for words in ({}, {"x": "arm"}, {"by": "arm"}):
                mine, theirs = (jm.plot.fitted_data(result, **words) for result in (trial(), other))
                pd.testing.assert_frame_equal(mine, theirs, rtol=1e-6)

    def test_columns_that_cannot_have_a_line_a_level(self):
        with pytest.raises(jm.ModelError, match=r"by='x' has 120 different values.*pandas\.cut"):
            jm.plot.fitted_data(trial(), "arm", by="x")
        with pytest.raises(jm.ModelError, match="'sex' is not a column"):
            jm.plot.fitted_data(trial(), by="sex")
        with pytest.raises(jm.ModelError, match="along the axis"):
            jm.plot.fitted_data(trial(), by="arm", x="arm")

    def test_profile(self):
        table = jm.plot.profile_data(PROFILE)
        assert table["value"].tolist() == [22, 26, 30]
        assert jm.plot.profile_data(PROFILE, "Days")["zeta"].tolist() == [0]

    def test_replicates_and_profiles_come_in_objects_too(self):
        kept = np.arange(500) < 400
        found = jm.plot.bootstrap_data(Drawn(replicates=REPLICATES, converged=kept))
        pd.testing.assert_frame_equal(found, jm.plot.bootstrap_data(REPLICATES[kept]))
        found = jm.plot.profile_data(Drawn(table=PROFILE), "Days")
        pd.testing.assert_frame_equal(found, jm.plot.profile_data(PROFILE, "Days"))

    def test_density(self):
        table = jm.plot.bootstrap_data(REPLICATES)
        x, density = table["value"].to_numpy(), table["density"].to_numpy()
        assert np.trapezoid(density, x) == pytest.approx(1, abs=0.02)
        np.testing.assert_allclose(density, stats.gaussian_kde(REPLICATES["Intercept"])(x))


def test_bad_input():
    with pytest.raises(jm.ModelError, match=r"'school' is not a grouping factor.*'Subject'"):
        jm.plot.caterpillar(sleep(), "school")
    with pytest.raises(jm.ModelError, match=r"'age' is not a column of 'Subject'.*'Intercept', 'Days'"):
        jm.plot.qq(sleep(), "Subject", "age")
    with pytest.raises(jm.ModelError, match=r"'999' is not a level"):
        jm.plot.fitted(sleep(), levels=["999"])
    with pytest.raises(jm.ModelError, match="between 0 and 1"):
        jm.plot.caterpillar(sleep(), level=95)
    with pytest.raises(jm.ModelError, match="'b' is not a parameter"):
        jm.plot.bootstrap(REPLICATES, "b")
    with pytest.raises(jm.DataError, match="all replicates of 'sigma' are 25"):
        jm.plot.bootstrap(REPLICATES, "sigma")
    empty = jm.mixedlm("Yield ~ 1 + (1 | Batch)", jm.datasets.load("dyestuff"))
    with pytest.raises(jm.DataError, match="numeric predictor"):
        jm.plot.fitted(empty.fit())
    with pytest.warns(jm.SingularWarning):
        singular = jm.mixedlm("Yield ~ 1 + (1 | Batch)", jm.datasets.load("dyestuff2")).fit()
    with pytest.raises(jm.DataError, match="variance of Intercept by Batch is zero"):
        jm.plot.qq(singular, "Batch")
    assert jm.plot.caterpillar(singular).has_data()


def test_fitted_takes_numbers_that_are_categories_as_they_are():
    data = jm.datasets.load("sleepstudy")
    data = data.assign(**{"test room": data.Days % 3, "late": data.Days > 4})
    result = jm.mixedlm("Reaction ~ late + C(`test room`) + Days + (1 | Subject)", data).fit()
    table = jm.plot.fitted_data(result)
    assert table.columns[1] == "Days"
    rows = data[data["Subject"] == table["Subject"].iloc[0]].assign(Days=0)
    assert table["fitted"].iloc[0] == pytest.approx(result.predict(rows, random_effects=True).mean())
    rooms = jm.plot.fitted_data(result, "test room")
    assert rooms["test room"].tolist() == [0, 1, 2] * 19
    with pytest.raises(jm.ModelError, match="'Subject' is not a predictor"):
        jm.plot.fitted_data(result, "Subject")


class TestQuantile:
    def test_data(self):
        table = jm.plot.quantile_data(cows(), key=3)
        np.testing.assert_array_equal(table["residual"], cows().residuals("simulated", key=3))
        np.testing.assert_array_equal(table["fitted"], cows().predict(kind="link"))
        order = np.argsort(table["residual"])
        assert np.all(np.diff(table["uniform"].to_numpy()[order]) > 0)
        assert table["uniform"].mean() == pytest.approx(0.5)
        given = jm.plot.quantile_data(cows(), "quantile", key=3)
        np.testing.assert_allclose(stats.norm.ppf(given["residual"]), cows().residuals("quantile", key=3), rtol=1e-9)

    @pytest.mark.parametrize("against", ["uniform", "fitted"])
    def test_picture(self, against):
        _, ax = plt.subplots()
        table = jm.plot.quantile_data(cows(), key=1)
        assert jm.plot.quantile(cows(), against, key=1, ax=ax) is ax
        points = max(ax.lines, key=lambda line: len(line.get_xdata()))
        np.testing.assert_array_equal(points.get_ydata(), table["residual"])
        across = table["uniform" if against == "uniform" else "place"]
        np.testing.assert_array_equal(points.get_xdata(), across)
        assert ax.get_ylabel() == "simulated residual"

    def test_refusals(self):
        with pytest.raises(jm.ModelError, match="this is a linear model"):
            jm.plot.quantile(sleep())
        with pytest.raises(jm.ModelError, match="use 'uniform' or 'fitted'"):
            jm.plot.quantile(cows(), "normal")
        with pytest.raises(jm.ModelError, match="use 'simulated' or 'quantile'"):
            jm.plot.quantile_data(cows(), "pearson")


class TestGeneralized:
    def test_lines_are_means(self):
        lines = jm.plot.fitted_data(cows(), "period")
        whole = lines[lines["herd"].isna()].set_index("period")["fitted"]
        expected = cows().predict({"period": list(whole.index)})
        np.testing.assert_allclose(whole, expected)
        ax = jm.plot.fitted(cows(), "period")
        dots = np.concatenate([line.get_ydata() for line in ax.lines if line.get_linestyle() == "None"])
        assert dots.max() <= 1
        with pytest.raises(jm.ModelError, match="no mean to draw a line of"):
            jm.plot.fitted(wine())

    def test_residuals_are_those_of_the_working_model(self):
        table = jm.plot.residuals_data(cows())
        np.testing.assert_array_equal(table["fitted"], cows().linear_predictor)
        assert jm.plot.residuals(cows()).get_xlabel() == "linear predictor"
        sample = jm.plot.qq_data(cows())["sample"]
        np.testing.assert_array_equal(sample, np.sort(cows().residuals("quantile")))
        assert jm.plot.qq(cows()).get_ylabel() == "quantile residuals"
        assert len(jm.plot.caterpillar_data(cows())) == 15


def test_a_predictor_may_be_part_of_a_grouping_factor():
    """As the recipe of a cake in recipe:replicate: it was said to be no predictor."""
    cake = reference_data("cake").astype({"temp": float})
    result = jm.mixedlm("angle ~ recipe * temp + (1 | recipe:replicate)", cake).fit()
    table = jm.plot.effects_data(result, "recipe")
    np.testing.assert_allclose(table["estimate"], result.emmeans("recipe").frame["estimate"])
    assert jm.plot.effects(result, "temp", by="recipe").get_xlabel() == "temp"
    # Groups that there are not are asked for on the way, and not drawn.
    rest = cake[~((cake["recipe"] == "B") & (cake["replicate"] == cake["replicate"].iloc[0]))]
    fewer = jm.mixedlm("angle ~ recipe * temp + (1 | recipe:replicate)", rest).fit()
    lines = jm.plot.fitted_data(fewer, "recipe")
    of_groups = lines[lines["recipe:replicate"].notna()]
    assert len(of_groups) == len(fewer.ranef()["recipe:replicate"])
    for name, recipe, value in of_groups.itertuples(index=False):
        own = rest[(rest["recipe"] + ":" + rest["replicate"]) == name]
        assert set(own["recipe"]) == {recipe}
        assert value == pytest.approx(np.mean(fewer.predict(own, random_effects=True)))


class TestEffects:
    def test_the_line_is_that_of_predictions(self):
        table = jm.plot.effects_data(sleep(), "Days")
        expected = sleep().predict({"Days": table["Days"]}, interval="confidence")
        np.testing.assert_allclose(table[["estimate", "lower", "upper"]], expected[["fit", "lower", "upper"]])
        ax = jm.plot.effects(sleep(), "Days")
        lines = {tuple(np.round(line.get_ydata(), 6)) for line in ax.lines if len(line.get_xdata()) == len(table)}
        frame = {"Days": table["Days"], "Subject": "308"}
        assert tuple(np.round(sleep().predict(frame, random_effects=True), 6)) in lines
        dots = next(line for line in ax.lines if len(line.get_xdata()) == 180)
        partial = sleep().predict() + sleep().resid
        np.testing.assert_allclose(np.sort(dots.get_ydata()), np.sort(partial), rtol=1e-3)

    def test_categories_have_points(self):
        ax = jm.plot.effects(cows(), "period")
        assert [label.get_text() for label in ax.get_xticklabels()] == ["p1", "p2", "p3", "p4"]
        expected = cows().predict({"period": ["p1", "p2", "p3", "p4"]})
        points = next(line for line in ax.lines if len(line.get_xdata()) == 4)
        np.testing.assert_allclose(points.get_ydata(), expected)
        with pytest.raises(jm.ModelError, match="'cow' is not a predictor"):
            jm.plot.effects(cows(), "cow")
        with pytest.raises(jm.ModelError, match="is the predictor along the axis"):
            jm.plot.effects(sleep(), "Days", by="Days")


@pytest.mark.parametrize("width", [None, 6.7, 3.35])
@pytest.mark.parametrize("count", [3, 300])
def test_all_checks_fit_into_one_picture(count, width):
    """On a screen, a page and a column nothing covers anything else or is cut, and letters can be read."""
    result = schools(count)
    figure = jm.plot.check(result, width=width)
    figure.canvas.draw()
    assert len(figure.axes) >= 6
    assert width is None or figure.get_figwidth() == pytest.approx(width)
    renderer = figure.canvas.get_renderer()
    boxes = [ax.get_tightbbox(renderer) for ax in figure.axes]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[k + 1 :])
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 6
    data = jm.plot.check_data(result)
    assert len(data["influence"]) == count
    assert (data["responses"]["draw"] == 0).sum() == result.nobs


def test_checks_need_room():
    assert jm.plot.check(sleep(), width=2).get_figwidth() == pytest.approx(2)
    for width in (1.9, np.array(0.4)):
        with pytest.raises(jm.ModelError, match="the panels need 2"):
            jm.plot.check(sleep(), width=width)


def test_bins_of_counts_hold_equally_many_numbers():
    """With bins between whole numbers the density of many counts fell to zero at every other one."""
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(40), 30)
    y = rng.poisson(np.exp(1 + rng.normal(0, 0.7, 40)[g]))
    result = jm.mixedglm("y ~ 1 + (1 | g)", pd.DataFrame({"y": y, "g": g}), family="poisson").fit()
    ax = jm.plot.check(result).axes[-1]
    observed = next(line for line in ax.lines if line.get_label() == "observed").get_ydata()
    assert len(np.unique(y)) < 30 < len(np.unique(jm.plot.check_data(result)["responses"]["value"]))
    assert (observed[: int(np.quantile(y, 0.9))] > 0).all()


def test_names_that_would_cover_each_other_are_left_out():
    _, ax = plt.subplots(figsize=(3.35, 2.6))
    assert jm.plot.caterpillar(schools(30), ax=ax).get_ylabel() == "30 levels of school, in order"
    assert jm.plot.caterpillar(schools(30)).get_ylabel() == "school"


def test_legends_of_means_and_of_power_leave_narrow_axes_their_width():
    """They stood beside the axes at any width, and took half of a printed column."""
    grid = {"school": [10, 20], "x": [0.5, 1.0]}
    curve = jm.power(schools(30), {"x": 0.5}, n_simulations=20, grid=grid, ddf="none")
    trial = jm.mixedlm(TRIAL, trial_data()).fit()
    means = trial.emmeans("arm", by="dose")
    for draw in (curve.plot, means.plot):
        figure, ax = plt.subplots(figsize=(3.35, 2.8), layout="constrained")
        draw(ax=ax)
        figure.canvas.draw()
        assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1
        assert ax.get_position().width > 0.6
        plt.close(figure)
    assert curve.plot().get_xticks().tolist() == [10, 20]


def test_few_rows_have_no_line_of_quartiles():
    data = pd.DataFrame({"y": [0, 1, 3, 2, 5, 0, 1, 2, 9, 4], "g": list("aabbccddee")})
    result = jm.mixedglm("y ~ 1 + (1 | g)", data, family="poisson").fit()
    ax = jm.plot.quantile(result, "fitted")
    assert ax.get_legend() is None
    assert len(ax.lines) == 4


def test_many_lines_are_one_thing_to_draw():
    """Of many groups the lines are those of the data, in the order of the groups and with the colours of `by`."""
    result = schools(300)
    ax, table = jm.plot.fitted(result), jm.plot.fitted_data(result)
    (crowd,) = ax.collections
    found = np.concatenate([path.vertices for path in crowd.get_paths()])
    np.testing.assert_allclose(found, table[table["school"].notna()][["x", "fitted"]])
    low, high = ax.get_ylim()
    assert low <= found[:, 1].min()
    assert found[:, 1].max() <= high


def test_visits_without_random_effects_have_no_lines_of_groups():
    data = pd.DataFrame({"id": np.repeat(np.arange(12), 3), "visit": np.tile([1, 2, 3], 12)})
    data["y"] = np.random.default_rng(0).normal(size=36) + data["visit"]
    result = jm.mixedlm("y ~ visit", data, residual="cs(visit | id)").fit()
    for draw in (jm.plot.fitted, jm.plot.caterpillar):
        with pytest.raises(jm.ModelError, match=r"no random effects to show; jm\.plot\.effects draws its fixed part"):
            draw(result)
