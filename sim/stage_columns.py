"""What the stages of data, training and deployment tell month by month, besides money: name → meaning, with unit.

The names are those of the records (`World.record`) and of the columns of the monthly table.
"""

from __future__ import annotations

STAGE_COLUMNS: dict[str, str] = {
    "source_tokens": "raw tokens that arrived from sources",
    "source_tokens_kept": "tokens of these that entered the pool",
    "source_tokens_repeated": "clean tokens that only repeated what a source had given before",
    "opted_in_tokens": "served tokens that may be learnt from",
    "synthetic_tokens": "kept tokens that the company's own fleet wrote",
    "synthetic_replica_h": "replica-hours of writing them",
    "labelling_h": "hours of labellers",
    "labelled_tokens": "usable tokens that labellers wrote",
    "preference_pairs": "usable comparisons of answers, by labellers and by users",
    "processing_cpu_h": "vCPU-hours of cleaning, deduplication and filtering",
    "stored_tb": "terabytes kept at the month's end, copies included",
    "data_pool_effective_tokens": "what the pool teaches, in effective tokens",
    "data_pool_crawled_tokens": "tokens of the pool that were crawled without anybody's leave",
    "sources_withdrawn": "sources that their owners took back",
    "legal_claims": "claims over training text",
    "cluster_hours": "hours of the training cluster in runs",
    "training_accelerator_h": "accelerator-hours of runs",
    "training_lost_h": "cluster hours of runs in which no new work was done: checkpoints, failures, restarts",
    "training_failures": "failures that the runs finished this month went through",
    "training_energy_kwh": "electricity of runs, kWh",
    "training_co2_kg": "CO2e of that electricity, kg",
    "reinforcement_replica_h": "replica-hours of serving machines that wrote samples for reinforcement",
    "evaluations": "candidates measured at the gate",
    "failed_gates": "candidates refused",
    "safety_incidents": "harmful answers that made news",
    "replicas_on_demand_mean": "on-demand replicas, mean over the month",
    "replicas_spot_mean": "spot replicas, mean over the month",
    "replica_h_idle": "reserved replica-hours that demand left idle",
    "idle_replica_h_used": "of these, hours that training or synthetic text used",
    "spot_interruptions": "spot replicas that the cloud took back",
    "outages": "outages of regions",
    "outage_h": "hours of outages, regions added up",
    "uptime": "fraction of the month in service, weighted by the regions' traffic",
    "credit_share": "fraction of the month's invoices given back for outages",
    "rollbacks": "versions rolled back",
    "support_tickets": "tickets answered",
    "scarce": "1 in a shortage of accelerators",
}
