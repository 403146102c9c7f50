-- Retries deletions that an object of the application refused, a few at a time; no read is needed. (Other refused rows are read again.)
-- The first retry is after a minute; the pause doubles, up to an hour. Returns how many rows were corrected.
create or replace function clerk_sync.retry_refused() returns integer
  language plpgsql volatile security definer set search_path = '' as $$
declare
  subject record;
  settled integer := 0;
begin
  perform clerk_sync.lock_writer();
  perform pg_catalog.set_config('lock_timeout', '100ms', true);
  -- A deferred constraint would fail all of them in the end.
  set constraints all immediate;
  for subject in
    select p.kind, p.id, v.observed_at as gone_at
      from clerk_sync.pending_reads p
      left join clerk_sync.versions v on v.kind = p.kind and v.id = p.id
     where p.reason = 'refused' and p.next_at <= pg_catalog.now()
       and (v.state = 'deleted' or (p.kind = 'membership' and v.state is null))
     order by p.next_at limit 50
  loop
    begin
      if subject.kind = 'user' then
        delete from clerk.user_details where id = subject.id;
        update clerk.users u
           set first_name = null, last_name = null, username = null, image_url = null, has_image = null,
               deleted_at = coalesce(u.deleted_at, pg_catalog.to_timestamp(subject.gone_at::double precision / 1000))
         where u.id = subject.id;
      elsif subject.kind = 'organization' then
        update clerk.organizations o
           set name = null, slug = null, image_url = null, has_image = null, max_allowed_memberships = null, public_metadata = null,
               created_at = null, updated_at = null,
               deleted_at = coalesce(o.deleted_at, pg_catalog.to_timestamp(subject.gone_at::double precision / 1000))
         where o.id = subject.id;
      else
        delete from clerk.organization_memberships where id = subject.id;
      end if;
      perform clerk_sync.check_access(array[row(subject.kind, subject.id, false, null, null, null, null, null, null, null, null, null)]::clerk_sync.intent[]);
      delete from clerk_sync.denials where kind = subject.kind and id = subject.id;
      delete from clerk_sync.pending_reads where kind = subject.kind and id = subject.id;
      settled := settled + 1;
    exception when others then
      update clerk_sync.pending_reads p
         set tries = p.tries + 1,
             next_at = pg_catalog.now() + least(interval '1 min' * pg_catalog.power(2, least(p.tries, 10)), interval '1 h')
       where p.kind = subject.kind and p.id = subject.id;
    end;
  end loop;
  -- Whose row is gone gives nothing.
  delete from clerk_sync.denials d
   where d.kind = 'membership' and not exists (select from clerk.organization_memberships m where m.id = d.id)
      or d.kind = 'user' and not exists (select from clerk.user_details u where u.id = d.id)
      or d.kind = 'organization' and not exists (select from clerk.organizations o where o.id = d.id);
  return settled;
end
$$;

revoke all on function clerk_sync.retry_refused() from public, anon, authenticated, service_role;
grant execute on function clerk_sync.retry_refused() to clerk_sync_worker;
