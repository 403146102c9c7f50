-- Step: which users and organizations that memberships embed are not here as a whole. Most are, and are not looked at any further.
-- unverified: their ids. stubs: those that may be written from what a membership embeds (R6): no tombstone forbids it.
create or replace function clerk_sync.find_missing_parents(embedded clerk_sync.stub_v1[]) returns clerk_sync.parents_found
  language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
  answer clerk_sync.parents_found;
begin
  select array_agg(s.id), array_agg(s::clerk_sync.stub_v1) filter (where v.state is distinct from 'deleted')
    into answer.unverified, answer.stubs
    from unnest(embedded) s
    left join lateral (select true as stands from clerk.users
                        where s.kind = 'user' and id = s.id and deleted_at is null
                       union all
                       select true from clerk.organizations
                        where s.kind = 'organization' and id = s.id and deleted_at is null offset 0) r on true
    -- A version whose row somebody removed by hand counts for nothing: the foreign keys need the row.
    left join lateral (select state from clerk_sync.versions
                        where kind = s.kind and id = s.id and (r.stands is null or state = 'stub') offset 0) v on true
   where r.stands is null or v.state = 'stub';
  return answer;
end
$$;

revoke all on function clerk_sync.find_missing_parents(clerk_sync.stub_v1[]) from public, anon, authenticated, service_role;
