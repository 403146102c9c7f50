-- Step, R6: memberships (by their n) that cannot be stored: their user or organization is deleted, may be (a tombstone that no event
-- announced), or is still missing.
create or replace function clerk_sync.find_dead_parents(changes clerk_sync.change_v1[], unverified text[])
  returns clerk_sync.dead_parents
  language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
  answer clerk_sync.dead_parents;
begin
  select array_agg(n) filter (where is_deleted and not is_inferred), array_agg(n) filter (where is_deleted and is_inferred),
         array_agg(n) filter (where is_missing)
    into answer
    from (select c.n, 'deleted' in (o.state, u.state) as is_deleted,
                 coalesce(o.inferred, false) or coalesce(u.inferred, false) as is_inferred,
                 (c.organization_id = any (unverified) and o.state is null) or (c.user_id = any (unverified) and u.state is null) as is_missing
            from unnest(changes) c
            left join lateral (select state, inferred from clerk_sync.versions
                                where c.organization_id = any (unverified) and kind = 'organization' and id = c.organization_id offset 0) o on true
            left join lateral (select state, inferred from clerk_sync.versions
                                where c.user_id = any (unverified) and kind = 'user' and id = c.user_id offset 0) u on true
           where c.kind = 'membership') parents;
  return answer;
end
$$;

revoke all on function clerk_sync.find_dead_parents(clerk_sync.change_v1[], text[]) from public, anon, authenticated, service_role;
