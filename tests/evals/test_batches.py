"""The loop over held-out rows: which rows it yields, what it says of them, and the model as each of its variants."""

import pytest
import torch

import families
from families import D_MODEL
from saelora.core.group import Group
from saelora.core.splice import splice
from saelora.core.students import Student, Students
from saelora.evals.batches import batches
from saelora.evals.spliced import SplicedModel
from saelora.evals.variant import Variant
from saelora.models.hookpoints import Hookpoint
from tiny_saes import SPARE_SPECIAL, TinySAE
from variants import plain_runs, rows_of, with_adapter

HERE = Hookpoint(1)
RUN = (Variant.BASE, Variant.SPLICED, Variant.ADAPTED, Variant.ADAPTED_CLEAN)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_rows_are_dealt_out_once_and_all_processes_keep_step(fresh, world):
    model, rows, found = fresh("llama"), rows_of(families.tiny("llama"), n_rows=7), {}
    for rank in range(world):
        told = []
        options = {"batch_rows": 2, "progress": told.append, "group": Group(rank, world)}
        with batches(Students(model, []), SPARE_SPECIAL, rows, **options) as each:
            mine = list(each)
        assert len(mine) == -(-4 // world)
        assert rank > 0 or sum(told) == rows.numel()  # of all processes: the first shows the whole's progress
        for batch in mine:
            assert torch.equal(batch.input_ids, rows[batch.start : batch.start + 2])
            assert torch.equal(batch.mask, SPARE_SPECIAL(batch.input_ids))
            if batch.counts:
                assert batch.start not in found
                found[batch.start] = batch.input_ids
    assert torch.equal(torch.cat([found[start] for start in sorted(found)]), rows)


def test_an_error_on_the_way_leaves_the_model_as_it_was(fresh):
    model, during = fresh("llama").train(), []

    def fail():
        with batches(Students(model, []), SPARE_SPECIAL, torch.full((4, 5), 9)) as each:
            for _ in each:
                during.append((torch.is_grad_enabled(), model.training))
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as kept:  # and with it the frames in which the loop was left
        fail()
    assert kept.tb is not None
    assert during == [(False, False)]
    assert torch.is_grad_enabled()
    assert model.training


@pytest.mark.parametrize("layers", [[2, 3], [3], [0, 3]], ids=["above", "with a stem", "around"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
# SPEC 4.1
def test_every_variant_equals_plain_forwards_whole_and_in_parts(fresh, family, layers):
    rows, model, saes = rows_of(families.tiny(family)), with_adapter(fresh(family), layers), {HERE: TinySAE(D_MODEL)}
    expected = plain_runs(model, saes, rows)
    with splice(model, saes, SPARE_SPECIAL) as spliced:
        subject = SplicedModel(model, spliced, SPARE_SPECIAL)
        plan = {variant: subject.student(variant) for variant in RUN}
        students = subject.students(plan.values())
        for variant in RUN:
            with subject.running_as(variant):
                whole = model(input_ids=rows).logits
            torch.testing.assert_close(whole, expected[variant]["logits"], rtol=1e-5, atol=1e-6)
        with subject.batches(students, rows, len(rows)) as each:
            (batch,) = each
            for variant, student in plan.items():
                logits = students.head(student).logits(batch.hidden(student))
                torch.testing.assert_close(logits, expected[variant]["logits"], rtol=1e-5, atol=1e-6)


def test_a_trained_sae_runs_in_the_adapted_model_alone(fresh):
    rows, model = rows_of(families.tiny("llama")), with_adapter(fresh("llama"), [2, 3])
    frozen, trained = {HERE: TinySAE(D_MODEL)}, {HERE: TinySAE(D_MODEL, seed=5)}
    before, after = plain_runs(model, frozen, rows), plain_runs(model, trained, rows)
    expected = {**before, Variant.ADAPTED: after[Variant.ADAPTED]}
    with splice(model, frozen, SPARE_SPECIAL) as spliced, splice(model, trained, SPARE_SPECIAL) as adapted:
        subject = SplicedModel(model, spliced, SPARE_SPECIAL, adapted=adapted)
        for variant in RUN:
            with subject.running_as(variant):
                logits = model(input_ids=rows).logits
            torch.testing.assert_close(logits, expected[variant]["logits"], rtol=1e-5, atol=1e-6)


def test_an_observer_sees_its_student_alone(fresh):
    rows, model, seen = rows_of(families.tiny("llama")), fresh("llama"), []
    saes = {HERE: TinySAE(D_MODEL)}
    with splice(model, saes, SPARE_SPECIAL) as one, splice(model, saes, SPARE_SPECIAL) as other:
        watched, unwatched = Student(one), Student(other)
        students = Students(model, [watched, unwatched])
        with batches(students, SPARE_SPECIAL, rows, batch_rows=len(rows)) as each:
            (batch,) = each
            values = batch.losses({"a": watched, "": unwatched}, {watched: lambda *event: seen.append(event)})
    assert len(seen) == 1
    assert set(values) == {"ce_base", "ce_a", "kl_a", "top1_a", "ce", "kl", "top1"}
    assert torch.equal(values["ce_a"], values["ce"])
    assert values["ce"].shape == rows[:, 1:].shape
