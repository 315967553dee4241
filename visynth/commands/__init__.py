"""One typed function per verb: read the input, call one stage, say what came of it. Flags come from the signatures."""

from __future__ import annotations

from collections.abc import Callable

from visynth.commands import generators, machine, registries, rendering, retraining, sets, tables, texts, trials

COMMANDS: dict[str, Callable[..., int | None]] = {
    "trial": trials.trial,
    "quickstart": trials.quickstart,
    "preflight": trials.preflight,
    "fit.compose": generators.fit_compose,
    "fit.export": generators.fit_export,
    "fit.pipeline": generators.fit_pipeline,
    "fit.sweep": generators.fit_sweep,
    "render": rendering.render,
    "renders.status": sets.renders_status,
    "renders.verify": sets.renders_verify,
    "renders.sweep": sets.renders_sweep,
    "renders.retry-failed": sets.renders_retry_failed,
    "renders.finalize": sets.renders_finalize,
    "renders.export": sets.renders_export,
    "renders.score": sets.renders_score,
    "renders.review": sets.renders_review,
    "evaluate": trials.evaluate,
    "search": trials.search,
    "gate": trials.gate,
    "explore": rendering.explore,
    "project": generators.project,
    "import-stylegan2": generators.import_stylegan2,
    "tabular.trial": tables.tabular_trial,
    "tabular.fit": tables.tabular_fit,
    "tabular.fit-tables": tables.tabular_fit_tables,
    "tabular.sample": tables.tabular_sample,
    "tabular.impute": tables.tabular_impute,
    "tabular.evaluate": tables.tabular_evaluate,
    "text.reviews": texts.text_reviews,
    "text.classify": texts.text_classify,
    "text.trial": texts.text_trial,
    "text.chat": texts.text_chat,
    "text.rows": texts.text_rows,
    "retrain": retraining.retrain,
    "registry.add": registries.registry_add,
    "registry.list": registries.registry_list,
    "registry.log": registries.registry_log,
    "registry.path": registries.registry_path,
    "registry.promote": registries.registry_promote,
    "registry.rollback": registries.registry_rollback,
    "registry.verify": registries.registry_verify,
    "doctor": machine.doctor,
}
NESTED = {
    "fit": ("compose", "pipeline", "export", "sweep"),
    "renders": ("status", "verify", "sweep", "retry-failed", "finalize", "export", "score", "review"),
    "registry": ("add", "list", "log", "path", "promote", "rollback", "verify"),
    "tabular": ("trial", "fit", "fit-tables", "sample", "impute", "evaluate"),
    "text": ("trial", "reviews", "classify", "chat", "rows"),
}
