"""The CACSE release's selections of MTEB tasks, and how its names stand in today's mteb."""

MTEB_SUITES = {
    "cacse-sts22": ("STS22",),
    "cacse-classification": (
        "AngryTweetsClassification",
        "Banking77Classification",
        "CUADAffiliateLicenseLicensorLegalBenchClassification",
        "CUADAntiAssignmentLegalBenchClassification",
        "CUADIrrevocableOrPerpetualLicenseLegalBenchClassification",
        "CUADMostFavoredNationLegalBenchClassification",
        "EstonianValenceClassification",
        "FinToxicityClassification",
        "FrenkEnClassification",
        "FrenkSlClassification",
        "HebrewSentimentAnalysis",
        "IndonesianIdClickbaitClassification",
        "LearnedHandsEducationLegalBenchClassification",
        "NaijaSenti",
        "OnlineStoreReviewSentimentClassification",
        "OPP115DoNotTrackLegalBenchClassification",
        "OralArgumentQuestionPurposeLegalBenchClassification",
        "PolEmo2",
        "SCDBPVerificationLegalBenchClassification",
        "WRIMEClassification",
    ),
    "cacse-retrieval": (
        "ArguAna",
        "BSARDRetrieval",
        "CQADupstackPhysicsRetrieval",
        "CQADupstackProgrammersRetrieval",
        "CQADupstackStatsRetrieval",
        "CQADupstackWebmastersRetrieval",
        "FiQA-PL",
        "JaQuADRetrieval",
        "Ko-miracl",
        "LegalBenchConsumerContractsQA",
        "LegalBenchCorporateLobbying",
        "LegalSummarization",
        "LEMBQMSumRetrieval",
        "LEMBSummScreenFDRetrieval",
        "MedicalQARetrieval",
        "NFCorpus",
        "QuoraRetrieval",
        "Touche2020",
        "TRECCOVID",
        "VieQuADRetrieval",
    ),
    "cacse-reranking": (
        "AlloprofReranking",
        "AskUbuntuDupQuestions",
        "CMedQAv1-reranking",
        "CMedQAv2-reranking",
        "MindSmallReranking",
        "MIRACLReranking",
        "MMarcoReranking",
        "SciDocsRR",
        "StackOverflowDupQuestions",
        "SyntecReranking",
        "T2Reranking",
    ),
}
"""As the release lists them."""

RELEASE_METRICS = {
    "cacse-sts22": "cosine_spearman",
    "cacse-classification": "accuracy",
    "cacse-retrieval": "map_at_10",
    "cacse-reranking": "map_at_1000",  # the rank lists are shorter: this is their MAP
}
"""What the release reports; mteb's own main score is another for some tasks."""

NOT_MAPPED = {
    "PolEmo2": "mteb has PolEmo2.0-IN and PolEmo2.0-OUT, and the release does not say which",
    "Ko-miracl": "gone from mteb; nearest is MIRACLRetrieval, subset ko, with another corpus",
}
"""Names that no task of today's mteb stands for; a suite is run without them, and says so."""


def release_metric(task: str) -> str | None:
    """The metric that the release reports for a task; None for tasks that it has not."""
    return next((RELEASE_METRICS[suite] for suite, names in MTEB_SUITES.items() if task in names), None)
