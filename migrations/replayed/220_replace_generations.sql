-- Step, R5 and R2: reads that show another membership of a pair than the one that is known contradict it. When they have done so for long
-- enough, theirs is the one that is known, placed after the one that it replaces: nobody is locked out for ever. Returns what of
-- the batch is superseded still.
create or replace function clerk_sync.replace_generations(
    superseded text[], changes clerk_sync.change_v1[], membership_rows clerk_sync.membership_row_v1[],
    context clerk_sync.context)
  returns text[]
  language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  skew constant bigint := 2100;
  hour constant bigint := 3600000;
  day constant bigint := 86400000;
  corrected pg_catalog.text[];
  ended pg_catalog.text[];
begin
  with rival as (
    select c.id, c.organization_id, c.user_id, g.membership_id as known, g.created_at as known_created_at,
           case when g.rival_id = c.id then g.rival_since else c.observed_at end as since, c.observed_at,
           case when context.is_believed then 0
                when g.created_at - least((membership_rows[c.row_number]).created_at, c.observed_at + 11000) <= skew
                     or clerk_sync.compare_access('membership', g.membership_id, null, null, membership_rows[c.row_number]) <= 0
                then hour else day end as wait
      from unnest(changes) c
      join clerk_sync.generations g on g.organization_id = c.organization_id and g.user_id = c.user_id and g.membership_id <> c.id
     where c.kind = 'membership' and c.id = any (superseded)
       and not exists (select from clerk_sync.versions v where v.kind = 'membership' and v.id = c.id and v.state = 'deleted' and not v.inferred)
  ), remembered as (
    update clerk_sync.generations g set rival_id = r.id, rival_since = r.since
      from rival r
     where g.organization_id = r.organization_id and g.user_id = r.user_id and r.observed_at - r.since < r.wait
  ), replaced as (
    update clerk_sync.generations g
       set membership_id = r.id, created_at = r.known_created_at + 1, rival_id = null, rival_since = null
      from rival r
     where g.organization_id = r.organization_id and g.user_id = r.user_id and r.observed_at - r.since >= r.wait
  ), scheduled as (
    insert into clerk_sync.pending_reads as p (kind, id, organization_id, user_id, reason, next_at)
      select 'membership', known, organization_id, user_id, 'contradicts', pg_catalog.to_timestamp((since + wait + 10000) / 1000.0)
        from rival where observed_at - since < wait
      on conflict (kind, id) do update set next_at = excluded.next_at where p.settles_after = 0
  )
  select array_agg(id) filter (where observed_at - since >= wait), array_agg(known) filter (where observed_at - since >= wait)
    into corrected, ended from rival;
  if cardinality(corrected) > 0 then
    perform clerk_sync.remove_memberships(ended);
    return array(select s from unnest(superseded) s where s <> all (corrected));
  end if;
  return superseded;
end
$$;

revoke all on function clerk_sync.replace_generations(text[], clerk_sync.change_v1[], clerk_sync.membership_row_v1[], clerk_sync.context)
  from public, anon, authenticated, service_role;
