"""The stages that a configuration can name."""

from __future__ import annotations

import importlib

from hoi_distill.stages.stage import Stage

STAGES: dict[str, str] = {
    "detections_file": "hoi_distill.stages.teacher.detectors.given:DetectionsFromFile",
    "ground_truth_boxes": "hoi_distill.stages.teacher.detectors.given:DetectionsFromAnnotations",
    "blip_features": "hoi_distill.stages.teacher.blip.stages:BlipFeatures",
    "blip_itm": "hoi_distill.stages.teacher.blip.stages:BlipItm",
    "blip_itc": "hoi_distill.stages.teacher.blip.itc:BlipItc",
    "blip_captions": "hoi_distill.stages.teacher.blip.stages:BlipCaptions",
    "blip2_features": "hoi_distill.stages.teacher.blip.blip2:Blip2Features",
    "blip2_itm": "hoi_distill.stages.teacher.blip.blip2:Blip2Itm",
    "blip2_itc": "hoi_distill.stages.teacher.blip.itc:Blip2Itc",
    "vision_features": "hoi_distill.stages.teacher.vision_features:VisionFeatures",
    "florence_captions": "hoi_distill.stages.teacher.florence.captions:FlorenceCaptions",
    "answers": "hoi_distill.stages.teacher.answers:Answers",
    "pair_answers": "hoi_distill.stages.teacher.pair_answers:PairAnswers",
    "blip_pair_answers": "hoi_distill.stages.teacher.blip.pair_answers:BlipPairAnswers",
    "simulated_pair_answers": "hoi_distill.stages.derived.simulated_pair_answers:SimulatedPairAnswers",
    "instances": "hoi_distill.stages.derived.instances:Instances",
    "served_answers": "hoi_distill.stages.teacher.served.answers:ServedAnswers",
    "served_pair_answers": "hoi_distill.stages.teacher.served.pair_answers:ServedPairAnswers",
    "served_triplets": "hoi_distill.stages.teacher.served.triplets:ServedTriplets",
    "triplets": "hoi_distill.stages.derived.triplets:Triplets",
    "image_labels": "hoi_distill.stages.derived.image_labels:ImageLabels",
    "sentence_embeddings": "hoi_distill.stages.teacher.sentence_embeddings:SentenceEmbeddings",
    "text_embeddings": "hoi_distill.stages.teacher.text_embeddings:TextEmbeddings",
    "detector": "hoi_distill.stages.teacher.detectors.transformers:Detector",
    "detectron2": "hoi_distill.stages.teacher.detectors.detectron2:Detectron2Detector",
    "onnx_detector": "hoi_distill.stages.teacher.detectors.onnx_detector:OnnxDetector",
    "open_vocabulary_boxes": "hoi_distill.stages.teacher.detectors.open_vocabulary:OpenVocabularyBoxes",
    "florence_boxes": "hoi_distill.stages.teacher.florence.boxes:FlorenceBoxes",
    "open_vocabulary_detections": "hoi_distill.stages.derived.open_vocabulary_detections:OpenVocabularyDetections",
    "link_pairs": "hoi_distill.stages.student.methods.link.teacher_stages:LinkPairs",
    "link_maps": "hoi_distill.stages.student.methods.link.teacher_stages:LinkMaps",
}
"""What may stand under ``stage:``, and the class of each."""


def stage_class(kind: str) -> type[Stage]:
    """The class of a stage of :data:`STAGES`."""
    module, _, attribute = STAGES[kind].partition(":")
    found: type[Stage] = getattr(importlib.import_module(module), attribute)
    return found
