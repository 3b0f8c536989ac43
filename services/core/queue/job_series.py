"""A job's throughput over time, as it is kept: how many images were done and failed in spans of equal length, since a
worker first claimed images of the job. When there would be more than MOST spans, two become one: so a job's row stays
small and its chart fine, whether it runs for a minute or a month. `jobs/job_rates.py` reads it.

The fold of the counters adds to it, so claims and settles pay nothing.
"""

MOST = 120
FIRST_SECONDS = 10

# Of the deltas of one job: when each finished images, and how many.
GATHERED = """
       date_trunc('second', min(at) FILTER (WHERE rendering > 0 OR done + failed > 0)) AS first_at,
       array_agg(at ORDER BY id) FILTER (WHERE done + failed > 0) AS finished_at,
       array_agg(done ORDER BY id) FILTER (WHERE done + failed > 0) AS finished_done,
       array_agg(failed ORDER BY id) FILTER (WHERE done + failed > 0) AS finished_failed"""
# What was kept, and these, in spans that are so many times longer that all of them fit. A delta may be older than those
# that were folded before it.
ADDED = f"""
  CROSS JOIN LATERAL (
    SELECT coalesce(before.series_at, first_at) AS series_at, coalesce(before.series_seconds, {FIRST_SECONDS}) AS width,
           (SELECT max(at) FROM unnest(finished_at) AS at) AS last_at
  ) kept
  CROSS JOIN LATERAL (SELECT extract(epoch FROM last_at - kept.series_at)::double precision AS length) reached
  CROSS JOIN LATERAL (
    SELECT width * (2 ^ greatest(0, ceil(ln(greatest(1, floor(length / width) + 1) / {MOST}) / ln(2))))::integer
           AS series_seconds
  ) spans
  CROSS JOIN LATERAL (
    SELECT array_agg(done ORDER BY nth) AS series_done, array_agg(failed ORDER BY nth) AS series_failed
    FROM (
      SELECT nth, sum(done)::integer AS done, sum(failed)::integer AS failed
      FROM (
        SELECT ((old.nth - 1) * width / spans.series_seconds)::integer AS nth, done, failed
        FROM unnest(before.series_done, before.series_failed) WITH ORDINALITY AS old (done, failed, nth)
        UNION ALL
        SELECT floor(greatest(0, extract(epoch FROM at - kept.series_at)) / spans.series_seconds)::integer, done, failed
        FROM unnest(finished_at, finished_done, finished_failed) AS new (at, done, failed)
        UNION ALL
        SELECT generate_series(0, floor(length / spans.series_seconds)::integer), 0, 0
      ) parts GROUP BY nth
    ) spans_of_job
  ) series"""  # noqa: S608  our own text
SET = """series_at = coalesce(counters.series_at, measured.series_at),
  series_seconds = CASE WHEN finished_at IS NULL THEN counters.series_seconds ELSE measured.series_seconds END,
  series_done = CASE WHEN finished_at IS NULL THEN counters.series_done ELSE measured.series_done END,
  series_failed = CASE WHEN finished_at IS NULL THEN counters.series_failed ELSE measured.series_failed END"""
