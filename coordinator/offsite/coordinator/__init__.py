"""The model owner's side: enrolment, campaigns, aggregation, plug-in, evaluation, export."""
