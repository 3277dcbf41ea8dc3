-- What everybody may see: projects that are public, and whatever their evaluations reach. The flags on derivations and store
-- paths follow their projects: by insert_batch and claim_* when something is new, by the trigger here when a project turns.

-- The name under which a viewer is shown whose a derivation is: that of its job's project, if they may know of that; else of a
-- public project that has it as an attribute; else a dash.
CREATE OR REPLACE FUNCTION shown_project(p_project projects, p_drv text, p_sees_all boolean) RETURNS text
LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    SELECT CASE WHEN p_project.is_public OR p_sees_all THEN p_project.name ELSE coalesce((
        SELECT p.name FROM eval_attrs a JOIN evaluations e ON e.id = a.eval_id JOIN projects p ON p.id = e.project_id
        WHERE a.drv_path = p_drv AND p.is_public ORDER BY e.id DESC LIMIT 1), '-') END
$$;

-- Batches, which read what is public and reach more, and projects that turn from one to the other go one after the other: what one
-- project reaches others have, too, so there is one lock for all. Taken first, since who turns locks derivations and jobs under it.
-- (Who claims outputs holds the job, which turns with its derivation.)
CREATE OR REPLACE FUNCTION lock_visibility(p_turns boolean) RETURNS void
LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT CASE WHEN p_turns THEN pg_advisory_xact_lock(hashtext('harmonia visibility'), 0)
        ELSE pg_advisory_xact_lock_shared(hashtext('harmonia visibility'), 0) END
$$;

-- Derivations that the project's evaluations reach.
CREATE OR REPLACE FUNCTION reached_by(p_project bigint) RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    WITH RECURSIVE reached (drv_path) AS (
        SELECT a.drv_path FROM evaluations e JOIN eval_attrs a ON a.eval_id = coalesce(e.reuses_eval_id, e.id)
        WHERE e.project_id = p_project AND a.drv_path IS NOT NULL
        UNION
        SELECT h.drv_path FROM evaluations e JOIN eval_holds h ON h.eval_id = e.id WHERE e.project_id = p_project
        UNION
        SELECT i.input_drv FROM reached r JOIN derivation_inputs i ON i.referrer = r.drv_path
    ) SELECT drv_path FROM reached
$$;

-- Outputs and sources of these derivations, and what those refer to.
CREATE OR REPLACE FUNCTION paths_of(p_drvs text[]) RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    WITH RECURSIVE found (path) AS (
        SELECT o.output_path FROM unnest(p_drvs) AS d(drv) JOIN derivation_outputs o ON o.drv_path = d.drv
        WHERE o.output_path IS NOT NULL
        UNION
        SELECT s.path FROM unnest(p_drvs) AS d(drv) JOIN derivation_sources s ON s.referrer = d.drv
        UNION
        SELECT r.path FROM found f JOIN store_paths s ON s.path = f.path CROSS JOIN LATERAL unnest(s.refs) AS r(path)
    ) SELECT path FROM found
$$;

-- These become public, with their paths.
CREATE OR REPLACE FUNCTION open_derivations(p_drvs text[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = on AS $$
DECLARE
    v_opened text[];
BEGIN
    WITH opened AS (
        UPDATE derivations SET public = true WHERE NOT public AND drv_path IN (SELECT unnest(p_drvs)) RETURNING drv_path
    ) SELECT array_agg(drv_path) INTO v_opened FROM opened;
    UPDATE store_paths SET public = true WHERE NOT public AND path IN (SELECT paths_of(v_opened));
END
$$;

CREATE OR REPLACE FUNCTION open_project(p_project bigint) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM lock_visibility(true);
    PERFORM open_derivations(ARRAY(SELECT reached_by(p_project)));
END
$$;

-- What a public project's batch leans on and does not bring: another project that had it may have turned private after the
-- evaluator looked, so that it is not public any more, nor what is below.
CREATE OR REPLACE FUNCTION open_below(p_drvs text[], p_attr_drvs text[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_closed text[];
BEGIN
    SELECT array_agg(DISTINCT o.drv) INTO v_closed FROM (
        SELECT unnest(p_attr_drvs) AS drv
        UNION ALL
        SELECT i.input_drv FROM unnest(p_drvs) AS r(drv)
        CROSS JOIN LATERAL (SELECT input_drv FROM derivation_inputs WHERE referrer = r.drv OFFSET 0) i
    ) o WHERE NOT (SELECT d.public FROM derivations d WHERE d.drv_path = o.drv);
    IF v_closed IS NOT NULL THEN
        PERFORM open_derivations(ARRAY(
            WITH RECURSIVE below (drv) AS (
                SELECT unnest(v_closed)
                UNION
                SELECT i.input_drv FROM below b
                CROSS JOIN LATERAL (SELECT input_drv FROM derivation_inputs WHERE referrer = b.drv OFFSET 0) i
                WHERE NOT (SELECT d.public FROM derivations d WHERE d.drv_path = i.input_drv)
            ) SELECT drv FROM below));
    END IF;
END
$$;

-- What other public projects reach too stays as it is.
CREATE OR REPLACE FUNCTION close_project(p_project bigint) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = on AS $$
DECLARE
    v_reached text[];
    v_kept text[];
    v_closed text[];
    v_paths text[];
    v_aside text[]; -- no output or source of anything: made on the side by a build
BEGIN
    PERFORM lock_visibility(true);
    v_reached := ARRAY(SELECT d.drv_path FROM reached_by(p_project) AS r(drv) JOIN derivations d ON d.drv_path = r.drv
        WHERE d.public);
    v_kept := ARRAY(
        WITH RECURSIVE reached AS MATERIALIZED (SELECT drv FROM unnest(v_reached) AS u(drv)),
        kept (drv) AS (
            SELECT r.drv FROM reached r WHERE EXISTS (
                    SELECT FROM eval_attrs a JOIN evaluations e ON e.id = a.eval_id JOIN projects p ON p.id = e.project_id
                    WHERE a.drv_path = r.drv AND p.is_public)
                OR EXISTS (
                    SELECT FROM eval_holds h JOIN evaluations e ON e.id = h.eval_id JOIN projects p ON p.id = e.project_id
                    WHERE h.drv_path = r.drv AND p.is_public)
                OR EXISTS (
                    SELECT FROM derivation_inputs i JOIN derivations d ON d.drv_path = i.referrer
                    WHERE i.input_drv = r.drv AND d.public AND NOT EXISTS (SELECT FROM reached o WHERE o.drv = i.referrer))
            UNION
            SELECT i.input_drv FROM kept k JOIN derivation_inputs i ON i.referrer = k.drv JOIN reached r ON r.drv = i.input_drv
        ) SELECT drv FROM kept);
    WITH closed AS (
        UPDATE derivations SET public = false
        WHERE drv_path IN (SELECT unnest(v_reached) EXCEPT SELECT unnest(v_kept)) RETURNING drv_path
    ) SELECT array_agg(drv_path) INTO v_closed FROM closed;
    v_paths := ARRAY(SELECT s.path FROM paths_of(v_closed) AS f(path) JOIN store_paths s ON s.path = f.path WHERE s.public
        AND NOT EXISTS (SELECT FROM derivation_outputs o JOIN derivations d ON d.drv_path = o.drv_path
            WHERE o.output_path = s.path AND d.public)
        AND NOT EXISTS (SELECT FROM derivation_sources o JOIN derivations d ON d.drv_path = o.referrer
            WHERE o.path = s.path AND d.public));
    UPDATE store_paths SET public = false WHERE path = ANY (v_paths);
    v_aside := ARRAY(SELECT p FROM unnest(v_paths) AS p
        WHERE NOT EXISTS (SELECT FROM derivation_outputs o WHERE o.output_path = p)
            AND NOT EXISTS (SELECT FROM derivation_sources o WHERE o.path = p));
    IF cardinality(v_aside) > 0 THEN
        UPDATE store_paths SET public = true
        WHERE path IN (SELECT r FROM store_paths s CROSS JOIN LATERAL unnest(s.refs) AS r
            WHERE s.public AND s.refs && v_aside AND r = ANY (v_aside));
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION project_turned() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NEW.is_public THEN
        PERFORM open_project(NEW.id);
    ELSE
        PERFORM close_project(NEW.id);
    END IF;
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER projects_turned AFTER UPDATE OF is_public ON projects
    FOR EACH ROW WHEN (OLD.is_public <> NEW.is_public) EXECUTE FUNCTION project_turned();

-- Projects without a forge are as visible as the configuration says, unless somebody said otherwise of one of them.
CREATE OR REPLACE FUNCTION set_local_visibility(p_public boolean) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_turned bigint;
BEGIN
    UPDATE default_limits SET local_public = p_public;
    UPDATE projects SET is_public = p_public WHERE kind <> 'forge' AND NOT visibility_chosen AND is_public <> p_public;
    GET DIAGNOSTICS v_turned = ROW_COUNT;
    RETURN v_turned;
END
$$;
