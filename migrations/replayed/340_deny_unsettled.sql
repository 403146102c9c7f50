-- Denies what can never be settled, where nobody makes reads: a delete that does not say when, a membership without its role. The next
-- event that can be used lifts it.
create or replace function clerk_sync.deny_unsettled(kind text, id text, observed_at bigint, reason text) returns void
  language plpgsql volatile security definer set search_path = '' as $$
#variable_conflict use_variable
begin
  perform clerk_sync.lock_writer();
  insert into clerk_sync.denials (kind, id, sqlstate, object)
    select kind, id, 'unsettled', reason
     where case kind when 'user' then exists (select from clerk.user_details d where d.id = id)
                     when 'organization' then exists (select from clerk.organizations o where o.id = id and o.deleted_at is null)
                     else exists (select from clerk.organization_memberships m where m.id = id) end
       and not exists (select from clerk_sync.versions v where v.kind = kind and v.id = id and v.observed_at > observed_at)
    on conflict on constraint denials_pkey do nothing;
end
$$;

revoke all on function clerk_sync.deny_unsettled(text, text, bigint, text) from public, anon, authenticated, service_role;
grant execute on function clerk_sync.deny_unsettled(text, text, bigint, text) to clerk_sync_worker;
