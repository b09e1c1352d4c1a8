"""The tables of teachers: what they wait for, what matching and answers cost, servers, and how well texts are read."""

from __future__ import annotations

from bench.table import Heading, Table

TEACHER = [
    Table(
        (
            Heading("images", "images"),
            Heading("prompts", "prompts"),
            Heading("CPU time of the bare loop", "bare_cpu_s", "s"),
            Heading("CPU time into the cache", "cached_cpu_s", "s"),
            Heading("cache over bare loop, median of rounds", "ratio"),
        )
    )
]
TURN = [
    Table(
        (
            Heading("forward", "{}/forward_ms", "ms"),
            Heading("the rest of the turn", "{}/turn_less_forward_ms", "ms"),
            Heading("its copies, measured alone", "{}/copies_ms", "ms"),
            Heading("readers: decode", "{}/decode_ms", "ms"),
            Heading("readers: prepare", "{}/prepare_ms", "ms"),
        ),
        (Heading("CLIP-L, 336 px", "clip_l_336"), Heading("BLIP-L, 384 px", "blip_l_384")),
        "CPU time an image",
    )
]
ITM = [
    Table(
        (
            Heading("CPU time, expanded states", "{}/seconds_expanded", "s"),
            Heading("CPU time, states of batch one", "{}/seconds_batch_of_one", "s"),
            Heading("CPU time, ours", "{}/seconds_ours", "s"),
            Heading("times faster than expanded", "{}/times_faster_than_expanded"),
            Heading("by arithmetic", "{}/arithmetic_ratio_to_expanded"),
            Heading("times faster than batch of one", "{}/times_faster_than_batch_of_one"),
            Heading("of the speed of a matrix product", "{}/fraction_of_matrix_product", "%"),
            Heading("largest difference of a logit", "{}/largest_difference"),
        ),
        (
            Heading("BLIP-base, 384 pixels", "blip_384"),
            Heading("BLIP-2, 364 pixels", "blip2_364"),
            Heading("BLIP-2, 224 pixels", "blip2_224"),
        ),
        "one image, 600 prompts",
    )
]
ANSWERS = [
    Table(
        (
            Heading("a cache that grows, CPU time a token", "{}/growing_ms", "ms"),
            Heading("a static cache, CPU time a token", "{}/static_ms", "ms"),
            Heading("static over growing, median of rounds", "{}/static_over_growing"),
            Heading("the same tokens", "{}/same_tokens"),
        ),
        (Heading("LLaVA, 576 tokens an image", "llava"), Heading("Qwen2.5-VL, 144 tokens an image", "qwen")),
        "four images together",
    )
]
SERVED = [
    Table(
        (
            Heading("requests", "{}/requests"),
            Heading("cells filled", "{}/filled"),
            Heading("cells lost", "{}/empty"),
            Heading("turned away with a 429", "{}/turned_away"),
            Heading("most requests in flight", "{}/most_in_flight"),
            Heading("CPU time of the command, a request", "{}/cpu_ms_a_request", "ms"),
            Heading("answers paid for twice", "{}/asked_and_answered_twice"),
            Heading("asked again, a kill", "{}/asked_again_a_kill"),
            Heading("cells of a batch", "{}/cells_of_a_batch"),
        ),
        (Heading("undisturbed", "undisturbed"), Heading("three kills", "killed")),
    ),
    Table(
        (
            Heading("precision, against the scene", "structured/{}/against_the_scene/precision", "%"),
            Heading("recall, against the scene", "structured/{}/against_the_scene/recall", "%"),
            Heading("precision, against what was said", "structured/{}/against_what_was_said/precision", "%"),
            Heading("recall, against what was said", "structured/{}/against_what_was_said/recall", "%"),
        ),
        (Heading("JSON", "json"), Heading("parsed English", "english")),
        "triplets of images with an answer",
    ),
    Table(
        (
            Heading("images", "structured/images"),
            Heading("cut answers", "structured/cut"),
            Heading("recorded failures, JSON", "structured/json_failures"),
            Heading("recorded failures, English", "structured/english_failures"),
        )
    ),
]
ALIGNMENT = [
    Table(
        tuple(
            Heading(f"{kind}, cosine at least {threshold}", f"{kind}/{threshold}/{{}}")
            for kind in ("objects", "verbs")
            for threshold in ("0.5", "0.6", "0.7", "0.8", "0.85", "0.9", "0.95")
        ),
        (Heading("precision", "precision"), Heading("recall", "recall")),
        "placed",
    ),
    Table(
        (Heading("objects", "objects/{}"), Heading("verbs", "verbs/{}")),
        (Heading("words of the vocabulary", "words"), Heading("words of nothing", "others")),
        "asked",
    ),
]
PAIR_ANSWERS = [
    Table(
        (
            Heading("nothing", "{}/none"),
            Heading("the image", "{}/one"),
            Heading("the image and each pair's boxes", "{}/two"),
        ),
        (
            Heading("CPU time, a question", "ms", "ms"),
            Heading("tokens", "tokens"),
            Heading("largest difference", "apart"),
        ),
        "shared",
    )
]
