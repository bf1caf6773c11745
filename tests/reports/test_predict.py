"""Predictions: the fixed part, the levels that the model knows, and everything that new data can have wrong."""

import functools
import io

import numpy as np
import pandas as pd
import pytest
from references import case

import jmixed as jm


@functools.cache
def sleep():
    return jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()


@functools.cache
def reference(name):
    fit, data = case(name)
    return jm.mixedlm(fit["lme4_formula_py"], data).fit(reml=fit["method"] == "REML"), fit["predictions"]


@pytest.mark.parametrize(
    "name",
    ["sleepstudy_slope_reml", "sleepstudy_uncorr_reml", "oxboys_quadre_ml", "machines_nested_reml", "penicillin_reml"],
)
class TestAgainstLme4:
    def test_the_fixed_part(self, name):
        result, expected = reference(name)
        new = pd.DataFrame(expected["newdata"])
        np.testing.assert_allclose(result.predict(new), expected["re_none"], rtol=0, atol=1e-4 * result.sigma)

    def test_with_random_effects(self, name):
        result, expected = reference(name)
        new = pd.DataFrame(expected["newdata"])
        values = result.predict(new, random_effects=True, new_levels="population")
        np.testing.assert_allclose(values, expected["re_all"], rtol=0, atol=1e-4 * result.sigma)


class TestRows:
    def test_the_models_own_rows(self):
        result = sleep()
        assert type(result.predict()) is np.ndarray
        np.testing.assert_allclose(result.predict(), result.model.exog @ result.fe_params.to_numpy())
        np.testing.assert_allclose(result.predict(random_effects=True), result.fittedvalues)
        data = jm.datasets.load("sleepstudy")
        np.testing.assert_allclose(result.predict(data, random_effects=True), result.fittedvalues)

    def test_the_index_is_that_of_the_data(self):
        new = pd.DataFrame({"Days": [2.0, 1.0]}, index=["b", "a"])
        values = sleep().predict(new)
        assert values.index.tolist() == ["b", "a"]
        np.testing.assert_allclose(values, 251.405105 + 10.467286 * new["Days"], rtol=1e-7)

    def test_the_fixed_part_needs_no_groups(self):
        assert sleep().predict({"Days": [0.0]}).iloc[0] == pytest.approx(251.405105, rel=1e-7)

    def test_one_row_and_no_rows(self, tmp_path):
        data = jm.datasets.load("sleepstudy")
        sleep().save(tmp_path / "fit")
        for result in (sleep(), jm.load(tmp_path / "fit")):
            expected = result.fittedvalues.iloc[[4]]
            for one in (data.iloc[4], data.iloc[4].to_dict(), data.iloc[4].to_frame().T):
                np.testing.assert_allclose(result.predict(one, random_effects=True), expected)
                assert result.predict(one, random_effects=True, interval="prediction").shape == (1, 4)
        np.testing.assert_allclose(sleep().predict(data[["Days"]].mean()), sleep().fe_params @ [1, data["Days"].mean()])
        np.testing.assert_allclose(sleep().predict(data["Days"]), sleep().predict(data))
        for none in (data.iloc[:0], {"Days": [], "Subject": []}):
            assert sleep().predict(none).shape == sleep().predict(none, random_effects=True).shape == (0,)
            for interval in ("confidence", "prediction"):
                assert sleep().predict(none, random_effects=True, interval=interval).shape == (0, 4)
        assert len(sleep().augment(data.iloc[:0])) == 0

    def test_missing_values_give_nan(self):
        new = pd.DataFrame({"Days": [1.0, np.nan, 2.0], "Subject": ["308", "308", None]})
        assert sleep().predict(new).isna().tolist() == [False, True, False]
        assert sleep().predict(new, random_effects=True).isna().tolist() == [False, True, True]

    def test_statsmodels_names_of_the_arguments(self):
        new = pd.DataFrame({"Days": [1.0]})
        assert sleep().predict(exog=new).iloc[0] == sleep().predict(new, True).iloc[0]
        X = np.array([[1.0, 1.0]])
        np.testing.assert_allclose(sleep().predict(X, transform=False), sleep().predict(new))
        with pytest.raises(jm.DataError, match="another name"):
            sleep().predict(new, exog=new)

    def test_a_model_of_arrays_needs_numbers(self):
        data = jm.datasets.load("sleepstudy")
        result = jm.MixedLM(data.Reaction, np.ones((180, 1)), data.Subject).fit()
        text = data[["Subject"]].astype(str) + "x"
        with pytest.raises(jm.DataError, match="no numbers"):
            result.predict(text)

    def test_transforms_remember_the_data_of_the_fit(self):
        data = jm.datasets.load("sleepstudy")
        result = jm.mixedlm("Reaction ~ center(Days) + (1 | Subject)", data).fit()
        plain = jm.mixedlm("Reaction ~ Days + (1 | Subject)", data).fit()
        new = pd.DataFrame({"Days": [8.0, 9.0]})
        np.testing.assert_allclose(result.predict(new), plain.predict(new), rtol=1e-8)


class TestLevels:
    def test_unknown_levels_are_named(self):
        new = pd.DataFrame({"Days": [1, 1, 1], "Subject": ["308", "Anna", "Otto"]})
        with pytest.raises(jm.DataError, match="'Anna', 'Otto' are not among the levels of 'Subject'.*population"):
            sleep().predict(new, random_effects=True)
        values = sleep().predict(new, random_effects=True, new_levels="population")
        np.testing.assert_allclose(values[1:], sleep().predict(new)[1:])
        assert abs(values[0] - values[1]) > 1

    def test_unknown_combinations_are_named(self):
        data = jm.datasets.load("pastes")
        result = jm.mixedlm("strength ~ 1 + (1 | batch / cask)", data).fit()
        new = data.iloc[:2].assign(cask=["a", "zz"])
        with pytest.raises(jm.DataError, match="'A:zz' is not among the levels of 'batch:cask'"):
            result.predict(new, random_effects=True)
        values = result.predict(new, random_effects=True, new_levels="population")
        assert values.iloc[1] == pytest.approx(result.fe_params.iloc[0] + result.ranef()["batch"].loc["A", "Intercept"])

    def test_labels_keep_their_type_in_messages(self):
        data = jm.datasets.load("sleepstudy").assign(Subject=lambda rows: rows["Subject"].astype(int))
        result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", data).fit()
        for new_levels in ("raise", "population"):
            with pytest.raises(jm.DataError, match=r"'Subject' has text in the new data, '308', but numbers .*, 308:"):
                result.predict({"Days": [1], "Subject": ["308"]}, random_effects=True, new_levels=new_levels)
        with pytest.raises(jm.DataError, match=r"'Subject' has numbers in the new data, 308, but text .*, '308':"):
            sleep().augment(pd.DataFrame({"Days": [1], "Subject": [308]}))
        with pytest.raises(jm.DataError, match="predict: 7 is not among"):
            result.predict({"Days": [1], "Subject": [7]}, random_effects=True)

    def test_one_factor_alone(self):
        data = jm.datasets.load("penicillin")
        result = jm.mixedlm("diameter ~ 1 + (1 | plate) + (1 | sample)", data).fit()
        parts = [result.predict(random_effects=[name]) for name in ("plate", "sample")]
        np.testing.assert_allclose(sum(parts) - result.predict(), result.fittedvalues)
        np.testing.assert_allclose(result.predict(data[["plate"]], random_effects="plate"), parts[0])
        with pytest.raises(jm.DataError, match=r"'tray' is not a grouping factor.*\['plate', 'sample'\]"):
            result.predict(random_effects=["tray"])

    def test_other_words_for_new_levels(self):
        with pytest.raises(jm.DataError, match="'raise' or 'population'"):
            sleep().predict(new_levels="ignore")

    def test_variance_components_of_new_rows(self):
        data = jm.datasets.load("pastes")
        vc = {"cask": "0 + C(cask)"}
        result = jm.mixedlm("strength ~ 1", data, groups="batch", re_formula="1", vc_formula=vc).fit()
        shuffled = data.sample(frac=1, random_state=0)
        values = result.predict(shuffled, random_effects=True)
        np.testing.assert_allclose(values, result.fittedvalues[shuffled.index])


class TestOffsets:
    def test_they_are_part_of_predictions(self):
        data = jm.datasets.load("sleepstudy")
        shifted = data.assign(base=100.0 + data["Days"] ** 2, Reaction=data["Reaction"] + 100 + data["Days"] ** 2)
        result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", shifted, offset="base").fit()
        np.testing.assert_allclose(result.fe_params, sleep().fe_params, rtol=1e-7)
        np.testing.assert_allclose(result.fittedvalues, sleep().fittedvalues + shifted["base"])
        np.testing.assert_allclose(result.predict(shifted), result.predict())
        inside = jm.mixedlm("Reaction ~ Days + offset(base) + (Days | Subject)", shifted).fit()
        np.testing.assert_allclose(inside.predict(shifted.iloc[:5]), result.predict(shifted.iloc[:5]))


class TestArrays:
    @staticmethod
    def model(offset=None):
        data = jm.datasets.load("sleepstudy")
        X = np.column_stack([np.ones(len(data)), data["Days"]])
        return jm.MixedLM(data["Reaction"].to_numpy(), X, data["Subject"].to_numpy(), offset=offset).fit()

    def test_columns_by_position(self):
        result = self.model()
        np.testing.assert_allclose(result.predict(np.array([[1.0, 3.0]])), [result.fe_params @ [1, 3]])
        np.testing.assert_allclose(result.predict([1.0, 3.0]), [result.fe_params @ [1, 3]])
        frame = pd.DataFrame({"a": [1.0], "b": [3.0]}, index=[7])
        assert result.predict(frame).index.tolist() == [7]

    def test_wrong_columns(self):
        with pytest.raises(jm.DataError, match="needs 2 columns"):
            self.model().predict(np.ones((3, 3)))

    def test_groups_are_needed_for_random_effects(self):
        with pytest.raises(jm.DataError, match="groups of new rows"):
            self.model().predict(np.ones((3, 2)), random_effects=True)
        np.testing.assert_allclose(self.model().predict(random_effects=True), self.model().fittedvalues)

    def test_an_offset_cannot_be_guessed(self):
        with pytest.raises(jm.DataError, match="offset"):
            self.model(offset=np.ones(180)).predict(np.ones((3, 2)))


class TestIntervals:
    @pytest.mark.parametrize("name", ["sleepstudy_slope_reml", "machines_nested_reml", "penicillin_reml"])
    def test_standard_errors_of_the_fixed_part(self, name):
        result, expected = reference(name)
        table = result.predict(pd.DataFrame(expected["newdata"]), interval="confidence")
        assert table.columns.tolist() == ["fit", "se", "lower", "upper"]
        np.testing.assert_allclose(table["se"], expected["se_fixed"], rtol=1e-6)
        np.testing.assert_allclose(table["upper"] - table["lower"], 2 * 1.959963984540054 * table["se"])

    def test_a_prediction_adds_what_is_not_known(self):
        """The residual variance; and z Sigma z' for a level that is new or is not asked for."""
        result = sleep()
        new = pd.DataFrame({"Days": [2.0, 2.0], "Subject": ["308", "nobody"]})
        options = {"random_effects": True, "new_levels": "population"}
        mean = result.predict(new, interval="confidence", **options)
        single = result.predict(new, interval="prediction", **options)
        z = np.array([1.0, 2.0])
        between = z @ result.cov_re.to_numpy() @ z
        added = single["se"] ** 2 - mean["se"] ** 2
        np.testing.assert_allclose(added, [result.scale, result.scale + between], rtol=1e-9)
        np.testing.assert_array_equal(single["fit"], mean["fit"])
        alone = result.predict(new[["Days"]], interval="prediction")
        np.testing.assert_allclose(alone.iloc[0], single.iloc[1], rtol=1e-9)

    def test_intervals_cover(self):
        """Over simulated data sets, at the level that was asked for: random effects, means and new responses vary."""
        rng = np.random.default_rng(1)
        groups, size, replicates = 40, 6, 60
        g = np.repeat(np.arange(groups), size)
        x = rng.normal(size=len(g))
        hits = []
        for _ in range(replicates):
            b = rng.normal(size=(groups, 2)) * [1.0, 0.5]
            mean = 1 + x + b[g, 0] + b[g, 1] * x
            data = pd.DataFrame({"y": mean + rng.normal(size=len(g)), "x": x, "g": g})
            result = jm.mixedlm("y ~ x + (x | g)", data).fit()
            own = result.predict(random_effects=True, interval="confidence", level=0.8)
            unknown = {"x": x, "g": g + groups}
            options = {"random_effects": True, "new_levels": "population", "level": 0.8}
            other = result.predict(unknown, interval="prediction", **options)
            b = rng.normal(size=(groups, 2)) * [1.0, 0.5]
            new = 1 + x + b[g, 0] + b[g, 1] * x + rng.normal(size=len(g))
            inside = [(t["lower"] < v) & (v < t["upper"]) for t, v in ((own, mean), (other.set_index(own.index), new))]
            hits.append([part.mean() for part in inside])
        error = np.std(hits, axis=0) / np.sqrt(replicates)
        # The variances are taken as known, which costs about a percentage point here.
        assert np.all(np.abs(np.mean(hits, axis=0) - 0.8) < 3 * error + 0.012)

    def test_the_models_own_rows_have_their_weights(self):
        data = case("sleepstudy_weights_ml")[1]
        result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", data, weights="w").fit(reml=False)
        mean, single = (result.predict(interval=kind) for kind in ("confidence", "prediction"))
        assert mean.index.equals(data.index)
        Z = np.column_stack([np.ones(len(data)), data["Days"]])
        left = np.einsum("ij,jk,ik->i", Z, result.cov_re, Z) + result.scale / data["w"]
        np.testing.assert_allclose(single["se"] ** 2 - mean["se"] ** 2, left, rtol=1e-8)

    def test_a_subset_of_the_factors(self):
        result, _ = reference("penicillin_reml")
        row = {"plate": ["a"], "sample": ["A"]}
        some = result.predict(row, random_effects=["plate"], interval="prediction").iloc[0]
        table = result.vcov(full=True)
        pair = ["Intercept", "Intercept|plate[a]"]
        variances = result.var_corr().set_index("group")["vcov"]
        expected = table.loc[pair, pair].to_numpy().sum() + variances["sample"] + variances["Residual"]
        assert some["se"] ** 2 == pytest.approx(expected, rel=1e-9)

    def test_columns_that_are_made_within_each_group(self):
        data = jm.datasets.load("sleepstudy")
        words = {"groups": "Subject", "re_formula": "1", "vc_formula": {"own": "0 + center(Days)"}}
        result = jm.mixedlm("Reaction ~ Days", data, **words).fit()
        own = result.predict(interval="prediction")
        np.testing.assert_allclose(result.predict(data, interval="prediction"), own, rtol=1e-10)
        with pytest.raises(jm.DataError, match="'own' are made within each group"):
            result.predict({"Days": [1.0]}, interval="prediction")

    def test_one_row_and_no_rows(self, tmp_path):
        data = jm.datasets.load("sleepstudy")
        sleep().save(tmp_path / "fit")
        for result in (sleep(), jm.load(tmp_path / "fit")):
            expected = result.fittedvalues.iloc[[4]]
            for one in (data.iloc[4], data.iloc[4].to_dict(), data.iloc[4].to_frame().T):
                np.testing.assert_allclose(result.predict(one, random_effects=True), expected)
                assert result.predict(one, random_effects=True, interval="prediction").shape == (1, 4)
        np.testing.assert_allclose(sleep().predict(data[["Days"]].mean()), sleep().fe_params @ [1, data["Days"].mean()])
        np.testing.assert_allclose(sleep().predict(data["Days"]), sleep().predict(data))
        for none in (data.iloc[:0], {"Days": [], "Subject": []}):
            assert sleep().predict(none).shape == sleep().predict(none, random_effects=True).shape == (0,)
            for interval in ("confidence", "prediction"):
                assert sleep().predict(none, random_effects=True, interval=interval).shape == (0, 4)
        assert len(sleep().augment(data.iloc[:0])) == 0

    def test_missing_values_give_nan(self):
        new = pd.DataFrame({"Days": [1.0, np.nan], "Subject": ["308", "308"]})
        table = sleep().predict(new, random_effects=True, interval="prediction")
        assert table.isna().all(axis=1).tolist() == [False, True]

    def test_columns_of_X(self):
        X = np.array([[1.0, 2.0]])
        by_columns = sleep().predict(X, transform=False, interval="confidence")
        by_formula = sleep().predict({"Days": [2.0]}, interval="confidence")
        np.testing.assert_allclose(by_columns, by_formula)
        with pytest.raises(jm.DataError, match="prediction interval"):
            sleep().predict(X, transform=False, interval="prediction")

    def test_bad_input(self):
        with pytest.raises(jm.DataError, match="interval='both'; use 'confidence', 'prediction' or None"):
            sleep().predict(interval="both")
        for level in (0, 1, 95, "high"):
            with pytest.raises(jm.ModelError, match="between 0 and 1"):
                sleep().predict(interval="confidence", level=level)
        with pytest.raises(jm.DataError, match="'school' is not a grouping factor"):
            sleep().predict(interval="confidence", random_effects=["school"])
        with pytest.raises(jm.DataError, match="'nobody' is not among the levels of 'Subject'"):
            sleep().predict({"Days": [1.0], "Subject": ["nobody"]}, random_effects=True, interval="prediction")


def empty_cell(first="1", by=None):
    """Four by three categories without the cell (4, 3), by their reference category; `by` makes the model."""
    rng = np.random.default_rng(8)
    cells = [(a, b) for a in "1234" for b in "123" if (a, b) != ("4", "3")]
    a, b = (np.repeat([cell[k] for cell in cells], 6) for k in (0, 1))
    r = np.tile(np.arange(6), len(cells))
    y = a.astype(float) * b.astype(float) + rng.normal(size=6)[r] + rng.normal(size=len(r))
    order = [first, *(k for k in "1234" if k != first)]
    data = pd.DataFrame({"y": y, "a": pd.Categorical(a, categories=order), "b": b, "r": r.astype(str)})
    with pytest.warns(jm.RankWarning, match="left out"):
        return data, (by or jm.mixedlm)("y ~ a * b + (1 | r)", data)


class TestEstimability:
    """The mean of a cell without rows is not determined: balanced cells are predicted by their means."""

    @pytest.mark.parametrize("first", list("1234"))
    def test_an_empty_cell_has_no_prediction_whatever_the_reference(self, first):
        data, model = empty_cell(first)
        result = model.fit()
        new = pd.DataFrame({"a": ["4", "4", "1"], "b": ["3", "2", "3"], "r": ["0", "1", "2"]}, index=["p", "q", "s"])
        means = data.groupby(["a", "b"], observed=True)["y"].mean()
        with pytest.warns(jm.RankWarning, match=r"1 of 3 new rows, the first of them 'p', has no estimate.*left out"):
            found = result.predict(new)
        assert np.isnan(found["p"])
        np.testing.assert_allclose(found[["q", "s"]], [means["4", "2"], means["1", "3"]], rtol=1e-6)
        for interval in ("confidence", "prediction"):
            with pytest.warns(jm.RankWarning, match="1 of 3 new rows"):
                table = result.predict(new, interval=interval, random_effects=True)
            assert table.loc["p"].isna().all()
            assert table.loc[["q", "s"]].notna().all(axis=None)
        with pytest.warns(jm.RankWarning, match="1 of 3 new rows"):
            assert np.isnan(result.augment(new)[".fitted"].iloc[0])

    def test_the_own_rows_are_all_estimable(self):
        data, model = empty_cell()
        result = model.fit()
        np.testing.assert_allclose(result.predict(data), result.predict(), rtol=1e-9)

    def test_without_rows_and_from_a_file(self):
        _, model = empty_cell()
        result = model.fit()
        file = io.BytesIO()
        result.save(file, remove_data=True)
        file.seek(0)
        with pytest.warns(jm.RankWarning, match="1 of 1 new rows"):
            assert np.isnan(jm.load(file).predict({"a": ["4"], "b": ["3"]})[0])

    def test_from_batches(self):
        def by(formula, data):
            return jm.from_batches(formula, [data.iloc[:30], data.iloc[30:]])

        result = empty_cell(by=by)[1].fit()
        with pytest.warns(jm.RankWarning, match="1 of 2 new rows"):
            found = result.predict({"a": ["4", "4"], "b": ["3", "2"]})
        assert list(np.isnan(found)) == [True, False]

    def test_collinear_numbers_must_stay_collinear(self):
        data = jm.datasets.load("sleepstudy").assign(Hours=lambda d: 24 * d.Days)
        with pytest.warns(jm.RankWarning, match="Hours, I"):
            result = jm.mixedlm("Reaction ~ Days + Hours + I(Days / 7) + (1 | Subject)", data).fit()
        new = pd.DataFrame({"Days": [0.0, 1e4, 3.0], "Hours": [0.0, 24e4, 73.0]})
        with pytest.warns(jm.RankWarning, match="1 of 3 new rows, the first of them 2"):
            found = result.predict(new)
        assert list(found.isna()) == [False, False, True]
        slope = jm.mixedlm("Reaction ~ Days + (1 | Subject)", data).fit()
        np.testing.assert_allclose(found[:2], slope.predict(new)[:2], rtol=1e-8)

    def test_a_redundant_coefficient_cannot_be_tested(self):
        _, model = empty_cell()
        result = model.fit()
        (name,) = result.model.spec.dropped
        for call in (result.test, result.t_test, result.wald_test):
            for words in (f"{name} = 0", [f"{name} - Intercept = 0"], {name: 0}):
                with pytest.raises(jm.FormulaError, match=r"has no coefficient.*redundant"):
                    call(words)
        assert result.test("Intercept = 0").df.iloc[0] > 0
