-- The guide names no columns but clerk_user_id and org_id.
create table documents (
  id            bigint generated always as identity primary key,
  clerk_user_id text,
  org_id        text,
  title         text not null
);
-- Some projects grant new tables to the API's roles by themselves, some do not.
grant select, insert on documents to authenticated;
