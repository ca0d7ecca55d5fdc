# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Label checks: workers reduce each sample to [`SampleFacts`], [`SplitStatistics`] adds these up, and each check in
[`CHECKS`] finds one kind of [`LabelIssue`] in the statistics.
"""
